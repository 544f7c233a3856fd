/** The thread of a DashboardWorker. */
import { AccessGate, failure } from "../live";
import { DlfsError, ErrorCode } from "../native/error";
import { Dashboard } from "./dashboard";
import type { DashboardReply, DashboardRequest } from "./worker";

declare const self: Worker;

let dashboard: Dashboard | null = null;

const tell = (reply: DashboardReply, transfer: ArrayBuffer[] = []): void => self.postMessage(reply, transfer);

async function open({ options }: Extract<DashboardRequest, { kind: "open" }>): Promise<void> {
  try {
    const { folders, token } = options;
    dashboard = await Dashboard.open(folders, new AccessGate(token), options);
    tell({ kind: "opened" });
  } catch (error) {
    const { code, op, message } =
      error instanceof DlfsError ? error : new DlfsError(ErrorCode.internal, "dashboard", String(error));
    tell({ kind: "refused", code, op, reason: message.slice(`${op}: `.length) });
    process.exit(0);
  }
}

async function answer(request: Extract<DashboardRequest, { kind: "request" }>): Promise<void> {
  const { id, url, method, headers, body } = request;
  const response = await (dashboard as Dashboard)
    .handle(new Request(url, { method, headers, body }))
    .catch(() => failure(500, "something went wrong here"));
  const bytes = await response.arrayBuffer();
  tell({ kind: "answer", id, status: response.status, headers: [...response.headers], body: bytes }, [bytes]);
}

self.onmessage = async ({ data }: MessageEvent<DashboardRequest>) => {
  if (data.kind === "open") await open(data);
  else if (data.kind === "request") await answer(data);
  else {
    dashboard?.[Symbol.dispose]();
    tell({ kind: "closed" });
    process.exit(0);
  }
};
