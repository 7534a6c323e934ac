// Search works on pages that are opened from a disk, where browsers start no worker: a hidden frame stands in for it.
// Of pages that a server sends it does nothing. What the theme would fetch from elsewhere for this.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source === this.inside) {
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
          if (this.onmessage) this.onmessage(event);
        }
      });
      this.ready = new Promise((resolve) => (window.__worker_is_there = resolve));
      const page = this.inside.document;
      page.open();
      page.write(`<script>
        postMessage = (message) => parent.dispatchEvent(new MessageEvent("message", { data: message, source: window }));
        importScripts = (...urls) => urls.reduce((before, each) => before.then(() => new Promise((resolve) => {
          const script = document.createElement("script");
          script.src = each; script.onload = resolve;
          document.body.appendChild(script);
        })), Promise.resolve());
      <\/script><body><script src="${new URL(url, location)}" onload="parent.__worker_is_there()"><\/script></body>`);
      page.close();
    }

    postMessage(message) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data: message })));
    }

    terminate() {}
  };
}
