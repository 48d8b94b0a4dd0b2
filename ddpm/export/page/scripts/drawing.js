// The pad: a picture of which each pixel is either given, as drawn, or left for the network to fill in.

const SCALE = 12; // screen pixels of the canvas per pixel of the picture
const RADIUS = { draw: 1.2, erase: 2.4 }; // of the pen, in pixels of the picture

export class Pad {
  constructor(canvas, { channels, size }, tool) {
    Object.assign(this, { canvas, channels, size, tool });
    canvas.width = canvas.height = SCALE * size;
    this.clear();
    this.pen = { x: size / 2, y: size / 2, shown: false };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.last = this.place(event);
      this.stroke(this.last, this.last);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.last) return;
      const moves = event.getCoalescedEvents?.() ?? [];
      for (const move of moves.length ? moves : [event]) {
        const place = this.place(move);
        this.stroke(this.last, place);
        this.last = place;
      }
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (this.last = null));
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const change of ["focus", "blur"]) {
      canvas.addEventListener(change, () => {
        this.pen.shown = change === "focus" && canvas.matches(":focus-visible");
        this.paint();
      });
    }
  }

  /** Nothing is given. */
  clear() {
    this.ink = new Uint8Array(this.channels * this.size ** 2);
    this.known = new Uint8Array(this.channels * this.size ** 2);
    this.paint();
  }

  /** All of a picture is given. */
  load(bytes) {
    this.ink = Uint8Array.from(bytes);
    this.known.fill(1);
    this.paint();
  }

  get empty() {
    return !this.known.includes(1);
  }

  get full() {
    return !this.known.includes(0);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.size, y: ((event.clientY - box.top) / box.height) * this.size };
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const before = { ...this.pen }, [right, down] = moves[event.key];
      this.pen.x = Math.min(this.size - 0.5, Math.max(0.5, this.pen.x + right));
      this.pen.y = Math.min(this.size - 0.5, Math.max(0.5, this.pen.y + down));
      this.pen.shown = true;
      if (event.shiftKey) this.stroke(before, this.pen);
      else this.paint();
    } else if (event.key === " ") {
      this.stroke(this.pen, this.pen);
    } else if (event.key.toLowerCase() === "x") {
      this.tool.other();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Draw or erase along a line. Drawn pixels are given, their soft rim is not; erased ones are left to the network. */
  stroke(from, to) {
    const erases = this.tool.current() === "erase", radius = RADIUS[erases ? "erase" : "draw"], plane = this.size ** 2;
    const dx = to.x - from.x, dy = to.y - from.y, square = dx * dx + dy * dy;
    for (let y = 0; y < this.size; y++) {
      for (let x = 0; x < this.size; x++) {
        const along = square ? Math.min(1, Math.max(0, ((x + 0.5 - from.x) * dx + (y + 0.5 - from.y) * dy) / square)) : 0;
        const distance = Math.hypot(x + 0.5 - from.x - along * dx, y + 0.5 - from.y - along * dy);
        if (distance > radius) continue;
        for (let i = y * this.size + x; i < this.ink.length; i += plane) {
          this.ink[i] = erases ? 0 : 255;
          this.known[i] = erases ? 0 : 1;
        }
      }
    }
    this.paint();
  }

  paint() {
    const context = this.canvas.getContext("2d"), plane = this.size ** 2;
    context.fillStyle = "#23262d";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.strokeStyle = "#4a505c";
    context.beginPath();
    for (let at = -this.size; at < this.size; at += 1) {
      context.moveTo(SCALE * at, 0);
      context.lineTo(SCALE * (at + this.size), SCALE * this.size);
    }
    context.stroke();
    for (let i = 0; i < plane; i++) {
      if (!this.known[i]) continue;
      const colour = [0, 1, 2].map((channel) => this.ink[this.channels === 3 ? channel * plane + i : i]);
      context.fillStyle = `rgb(${colour})`;
      context.fillRect(SCALE * (i % this.size), SCALE * Math.floor(i / this.size), SCALE, SCALE);
    }
    if (this.pen?.shown) {
      context.strokeStyle = "#7aa2ff";
      context.lineWidth = 3;
      context.strokeRect(SCALE * (this.pen.x - 1), SCALE * (this.pen.y - 1), 2 * SCALE, 2 * SCALE);
      context.lineWidth = 1;
    }
  }
}
