// Browsers load no modules from a file: without this the page would wait for its network for ever.
if (location.protocol === "file:") {
  const status = document.getElementById("status");
  status.dataset.state = "error";
  status.textContent = "Opened as a file, this page cannot load its network. Serve its folder: python -m ddpm page";
}
