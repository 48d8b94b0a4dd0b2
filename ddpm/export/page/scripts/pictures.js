// Pictures on the screen and as files. Images are bytes [channels × size × size], one after the other.

/** Put one image onto a canvas, pixel for pixel. */
export function paint(canvas, bytes, { channels, size }) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), pixels = context.createImageData(size, size), plane = size * size;
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * i + channel] = bytes[channels === 3 ? channel * plane + i : i];
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

/** The image number `row` of many. */
export function one(images, row, { channels, size }) {
  const length = channels * size * size;
  return images.subarray(row * length, (row + 1) * length);
}

/** A group of pictures, each a button: `show` paints them, onChoose(row) is called for the one that is pressed. */
export class Pictures {
  constructor(group, image, hint, onChoose) {
    Object.assign(this, { group, image, onChoose, images: null });
    const empty = Object.assign(document.createElement("p"), { className: "empty", textContent: hint });
    group.replaceChildren(empty);
  }

  /** Make room for so many pictures, in `columns` columns, each with the words that name it. */
  begin(names, columns) {
    this.columns = columns;
    this.group.style.setProperty("--columns", columns);
    this.canvases = names.map(() => document.createElement("canvas"));
    this.buttons = this.canvases.map((canvas, row) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "picture", disabled: true });
      button.append(canvas);
      button.setAttribute("aria-label", names[row]);
      button.addEventListener("click", () => this.onChoose(row));
      return button;
    });
    this.group.replaceChildren(...this.buttons);
  }

  show(images) {
    this.images = images;
    this.canvases.forEach((canvas, row) => paint(canvas, one(images, row, this.image), this.image));
  }

  /** The pictures are final: they can be chosen. */
  finish(names) {
    this.buttons.forEach((button, row) => {
      button.disabled = !this.onChoose;
      button.setAttribute("aria-label", names[row]);
    });
  }

  /** Offer all pictures as one PNG file, each pixel 4 × 4. */
  save(name) {
    const { size } = this.image, gap = 2, scale = 4, step = size + gap;
    const rows = Math.ceil(this.canvases.length / this.columns);
    const sheet = document.createElement("canvas");
    sheet.width = scale * (this.columns * step - gap);
    sheet.height = scale * (rows * step - gap);
    const context = sheet.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.fillRect(0, 0, sheet.width, sheet.height);
    this.canvases.forEach((canvas, row) => {
      const left = scale * step * (row % this.columns), top = scale * step * Math.floor(row / this.columns);
      context.drawImage(canvas, left, top, scale * size, scale * size);
    });
    sheet.toBlob((blob) => {
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });
  }
}
