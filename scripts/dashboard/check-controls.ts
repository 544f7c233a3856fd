/** What a training that goes on is told on the dashboard. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { DashboardServer } from "../../lib/dashboard";
import type { ControlMessage } from "../../lib/formats";
import { LiveBus, LiveServer, removeLiveAddress, writeLiveAddress } from "../../lib/live";
import type { Browser } from "../service/browser";

/** @param run the folder of one in `root` */
export async function checkControls(
  browser: Browser,
  root: string,
  run: string,
  out: string,
  check: (good: boolean, what: string) => void,
): Promise<void> {
  const heard: string[] = [];
  await using training = new LiveServer({
    ...{ port: 0, token: "live", bus: new LiveBus() },
    submit: async ({ value }) => {
      const { command, value: factor } = value as ControlMessage;
      heard.push(factor === undefined ? command : `${command} ${factor}`);
      return { accepted: true, from: 7 };
    },
  });
  await mkdir(join(run, "live"), { recursive: true });
  await writeLiveAddress(run, { url: training.url, token: "live", split: "train" });
  await using server = await DashboardServer.open({ folders: [root], port: 0, token: "controls", edit: true });
  const told = (text: string) =>
    browser.until(`document.getElementById("control-told").textContent.endsWith("${text}")`);
  const button = (command: string) => `#control [data-command="${command}"]`;

  await browser.open(`${server.url}#token=controls`, 1280, 900, false);
  await browser.until("!document.getElementById('control').hidden");
  await browser.rests();
  await browser.click(button("evaluate"));
  await told("evaluates, before step 8");
  await browser.evaluate("document.getElementById('control-rate').select()");
  await browser.call("Input.insertText", { text: "0.5" });
  // By keyboard: from the number to its button.
  await browser.press("Tab");
  await browser.press("Enter");
  await told("has another learning rate, before step 8");
  await browser.screenshot(join(out, "desktop-controls.png"));
  await browser.click(button("stop"));
  await browser.until(`document.querySelector('${button("stop")}').textContent === "stop it indeed"`);
  check(heard.join() === "evaluate,learningRate 0.5", `a training is not stopped by one click: ${heard.join()}`);
  await browser.click(button("stop"));
  await told("stops, its state saved, before step 8");
  check(heard.at(-1) === "stop", "and is by two");
  await removeLiveAddress(run);
}
