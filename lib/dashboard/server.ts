/** The dashboard at an address of its own. */
import { AccessGate, failure } from "../live";
import { DlfsError, ErrorCode } from "../native/error";
import { Dashboard } from "./dashboard";
import type { Predictor } from "./edits";
import { DashboardWorker } from "./worker";

/** A message of labels. */
const MAX_MESSAGE_BYTES = 2 << 20;

export interface DashboardServerOptions {
  /** Of runs, or folders that hold such. */
  folders: readonly string[];
  /** 0: any free one. */
  port: number;
  /** Default "127.0.0.1": nobody else on the network reaches it. */
  hostname?: string;
  /** Who knows it may read, and write where `edit` is true. */
  token: string;
  /** Whether labels may be written. Default false. */
  edit?: boolean;
  /** What finds objects on images of runs whose training does not go on; not with `thread`. */
  predict?: Predictor;
  /** Whether a thread of its own reads the runs, so that this one, which trains, does not. Default false. */
  thread?: boolean;
}

/** Serves a dashboard over run folders. */
export class DashboardServer implements AsyncDisposable {
  private constructor(
    private readonly server: Bun.Server<undefined>,
    private readonly owned: AsyncDisposableStack,
  ) {}

  /** @throws DlfsError where a folder is none, the token is empty, or the port cannot be had */
  static async open({
    folders,
    port,
    hostname = "127.0.0.1",
    token,
    edit,
    predict,
    thread = false,
  }: DashboardServerOptions): Promise<DashboardServer> {
    await using owned = new AsyncDisposableStack();
    const dashboard = owned.use(
      thread
        ? await DashboardWorker.open({ folders, edit, token })
        : await Dashboard.open(folders, new AccessGate(token), { edit, token, predict }),
    );
    try {
      const server = Bun.serve({
        ...{ port, hostname, maxRequestBodySize: edit ? MAX_MESSAGE_BYTES : 1024 },
        // Images may come from far away, and a training answers between two steps.
        idleTimeout: 120,
        fetch: (request) => dashboard.handle(request),
        error: () => failure(500, "something went wrong here"),
      });
      return new DashboardServer(server, owned.move());
    } catch (error) {
      const { message } = error as Error;
      throw new DlfsError(ErrorCode.io, "dashboard", `cannot listen on ${hostname}:${port}: ${message}`);
    }
  }

  /** "http://127.0.0.1:7008/" */
  get url(): string {
    return this.server.url.href;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.stop(true);
    await this.owned.disposeAsync();
  }
}
