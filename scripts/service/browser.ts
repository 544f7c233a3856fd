/** A headless Chromium, driven by its DevTools protocol. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

type Json = Record<string, unknown>;

/** In the window, in pixels. */
export interface Place {
  x: number;
  y: number;
}

const between = (from: Place, to: Place, share: number): Place => ({
  x: from.x + (to.x - from.x) * share,
  y: from.y + (to.y - from.y) * share,
});

const KEY_CODES: Readonly<Record<string, number>> = {
  ...{ Backspace: 8, Tab: 9, Enter: 13, Escape: 27, PageUp: 33, PageDown: 34, End: 35, Home: 36 },
  ...{ ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40, Delete: 46 },
};

export class Browser implements AsyncDisposable {
  readonly #socket: WebSocket;
  readonly #pending = new Map<number, { done: (value: Json) => void; fail: (error: Error) => void }>();
  readonly #end: () => Promise<void>;
  #next = 1;
  #session: string | undefined;
  /** What pages wrote as errors: exceptions, refused loads, violations of policies. */
  readonly complaints: string[] = [];

  private constructor(socket: WebSocket, end: () => Promise<void>) {
    this.#socket = socket;
    this.#end = end;
    socket.addEventListener("message", ({ data }) => this.#receive(JSON.parse(String(data)) as Json));
  }

  /** Ends the process, saying why, where no Chromium is installed. */
  static async startOrSkip(): Promise<Browser> {
    const browser = await Browser.start();
    if (browser) return browser;
    console.log("skipped: no Chromium is installed here (apt-get install chromium)");
    process.exit(0);
  }

  /** null where no Chromium is installed. */
  static async start(): Promise<Browser | null> {
    const program = PROGRAMS.map((name) => Bun.which(name)).find((path) => path !== null);
    if (!program) return null;
    const profile = await mkdtemp(join(tmpdir(), "dlfs-browser-"));
    const options = [
      "--headless=new",
      "--remote-debugging-port=0",
      "--no-first-run",
      "--disable-gpu",
      "--disable-dev-shm-usage",
    ];
    // As root there is no sandbox to be had.
    const sandbox = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
    const child = Bun.spawn([program, ...options, ...sandbox, `--user-data-dir=${profile}`, "about:blank"], {
      ...{ stdin: "ignore", stdout: "ignore", stderr: "pipe" },
    });
    const end = async () => {
      child.kill("SIGKILL");
      await child.exited;
      await rm(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
    };
    // Read on to its end: a program whose pipe is full waits.
    let text = "";
    const address = await new Promise<string | null>((done) => {
      void (async () => {
        for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) {
          if (text.length < 100_000) text += chunk;
          const found = /DevTools listening on (ws:\/\/\S+)\s/.exec(text)?.[1];
          if (found !== undefined) done(found);
        }
        done(null);
      })();
    });
    if (address === null) {
      await end();
      throw new Error(`${program} did not start:\n${text}`);
    }
    const socket = new WebSocket(address);
    await new Promise((done, fail) => {
      socket.addEventListener("open", done);
      socket.addEventListener("error", fail);
    });
    const browser = new Browser(socket, end);
    const { targetId } = await browser.call("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await browser.call("Target.attachToTarget", { targetId, flatten: true });
    browser.#session = sessionId as string;
    for (const domain of ["Page", "Runtime", "Log", "DOM"]) await browser.call(`${domain}.enable`);
    return browser;
  }

  call(method: string, params: Json = {}): Promise<Json> {
    const id = this.#next++;
    return new Promise((done, fail) => {
      this.#pending.set(id, { done, fail });
      this.#socket.send(JSON.stringify({ id, method, params, sessionId: this.#session }));
    });
  }

  #receive(message: Json): void {
    const { id, method, params, result, error } = message as { id?: number; method?: string } & Record<string, Json>;
    if (id !== undefined) {
      const waiting = this.#pending.get(id);
      this.#pending.delete(id);
      if (error) waiting?.fail(new Error(String(error.message)));
      else waiting?.done(result as Json);
    } else if (method === "Runtime.exceptionThrown") {
      this.complaints.push(JSON.stringify(params?.exceptionDetails));
    } else if (method === "Log.entryAdded") {
      const { level, text, url } = (params?.entry ?? {}) as { level?: string; text?: string; url?: string };
      if (level === "error") this.complaints.push(`${text} ${url ?? ""}`);
    }
  }

  /** The value of an expression in the page. */
  async evaluate<T>(expression: string): Promise<T> {
    const answer = await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (answer.exceptionDetails) throw new Error(`${expression}: ${JSON.stringify(answer.exceptionDetails)}`);
    return (answer.result as { value: T }).value;
  }

  /** Waits until an expression is true. */
  async until(expression: string, seconds = 20): Promise<void> {
    const deadline = performance.now() + seconds * 1000;
    // A page that is left meanwhile answers nothing; the next one does.
    const holds = () =>
      this.evaluate<boolean>(`Boolean(${expression})`).catch((error: Error) => {
        if (/navigated|context/i.test(error.message)) return false;
        throw error;
      });
    while (!(await holds())) {
      if (performance.now() > deadline) throw new Error(`not so in ${seconds} s: ${expression}`);
      await Bun.sleep(25);
    }
  }

  /** Waits until the page grows no more: what is clicked at is where it was. */
  async rests(): Promise<void> {
    const height = () => this.evaluate<number>("document.documentElement.scrollHeight");
    for (let before = -1, now = await height(); now !== before; now = await height()) {
      before = now;
      await Bun.sleep(200);
    }
  }

  async open(url: string, width: number, height: number, mobile: boolean): Promise<void> {
    await this.call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: mobile ? 2 : 1, mobile });
    await this.call("Page.navigate", { url });
    await this.until("document.readyState === 'complete'");
  }

  /** Chooses files in the file input of a selector, as a user does. */
  async choose(selector: string, files: readonly string[]): Promise<void> {
    const { root } = (await this.call("DOM.getDocument")) as { root: { nodeId: number } };
    const { nodeId } = await this.call("DOM.querySelector", { nodeId: root.nodeId, selector });
    await this.call("DOM.setFileInputFiles", { nodeId, files: [...files] });
  }

  /** Where an element is in the window, which is scrolled to it. */
  async place(selector: string): Promise<{ x: number; y: number; width: number; height: number }> {
    const place = await this.evaluate<{ x: number; y: number; width: number; height: number } | null>(`(() => {
      const element = document.querySelector(${JSON.stringify(selector)});
      element?.scrollIntoView({ block: "center", behavior: "instant" });
      const { x, y, width, height } = element?.getBoundingClientRect() ?? {};
      return element && { x, y, width, height };
    })()`);
    if (!place || place.width === 0 || place.height === 0) throw new Error(`nothing to be seen at ${selector}`);
    return place;
  }

  /** Clicks into the middle of an element. */
  async click(selector: string): Promise<void> {
    await this.drag(selector, 0.5, 0.5);
  }

  /** Drags with the mouse over an element, from one share of its width to another, half its height. */
  async drag(selector: string, from: number, to: number): Promise<void> {
    const { x, y, width, height } = await this.place(selector);
    const at = (share: number) => ({ x: x + share * width, y: y + height / 2, button: "left", clickCount: 1 });
    const send = (type: string, event: Json) => this.call("Input.dispatchMouseEvent", { type, ...event });
    await send("mouseMoved", { ...at(from), button: "none" });
    await send("mousePressed", at(from));
    for (let i = 1; i <= 4 && from !== to; i++) {
      await send("mouseMoved", { ...at(from + ((to - from) * i) / 4), buttons: 1 });
    }
    await send("mouseReleased", at(to));
  }

  /** Drags with the mouse from one place of the window to another. */
  async dragTo(from: Place, to: Place): Promise<void> {
    const send = (type: string, { x, y }: Place, more: Json) =>
      this.call("Input.dispatchMouseEvent", { type, x, y, button: "left", clickCount: 1, ...more });
    await send("mouseMoved", from, { button: "none" });
    await send("mousePressed", from, {});
    for (let i = 1; i <= 4; i++) await send("mouseMoved", between(from, to, i / 4), { buttons: 1 });
    await send("mouseReleased", to, {});
  }

  /** Moves fingers over the screen, each from one place to another; one that stays where it is taps. */
  async touch(...fingers: { from: Place; to: Place }[]): Promise<void> {
    const send = (type: string, share: number | null) => {
      const touchPoints =
        share === null ? [] : fingers.map(({ from, to }, id) => ({ ...between(from, to, share), id }));
      return this.call("Input.dispatchTouchEvent", { type, touchPoints });
    };
    await send("touchStart", 0);
    const moves = fingers.some(({ from, to }) => from.x !== to.x || from.y !== to.y);
    for (let i = 1; i <= 4 && moves; i++) await send("touchMove", i / 4);
    await send("touchEnd", null);
  }

  /** Presses a key, "Tab", "Enter", "ArrowRight", or one character, with others held down. */
  async press(key: string, ...held: ("Alt" | "Control" | "Shift")[]): Promise<void> {
    const text = key === "Enter" ? "\r" : key.length === 1 && held.length === 0 ? key : undefined;
    const modifiers = held.reduce((sum, one) => sum + { Alt: 1, Control: 2, Shift: 8 }[one], 0);
    const code = { key, code: key, windowsVirtualKeyCode: KEY_CODES[key] ?? key.toUpperCase().charCodeAt(0) };
    const event = { ...code, modifiers, ...(text && { text }) };
    await this.call("Input.dispatchKeyEvent", { type: "keyDown", ...event });
    await this.call("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  /** @param window what is seen alone, rather than all of the page */
  async screenshot(path: string, window = false): Promise<void> {
    const { data } = await this.call("Page.captureScreenshot", { format: "png", captureBeyondViewport: !window });
    await Bun.write(path, Buffer.from(data as string, "base64"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.close();
    await this.#end();
  }
}
