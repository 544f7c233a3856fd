/** The dashboard at an address of its own. */
import { AccessGate, failure } from "../live";
import { DlfsError, ErrorCode } from "../native/error";
import { Dashboard } from "./dashboard";

export interface DashboardServerOptions {
  /** Of runs, or folders that hold such. */
  folders: readonly string[];
  /** 0: any free one. */
  port: number;
  /** Default "127.0.0.1": nobody else on the network reaches it. */
  hostname?: string;
  /** Who knows it may read. */
  token: string;
}

/** Serves a dashboard over run folders. */
export class DashboardServer implements AsyncDisposable {
  private constructor(private readonly server: Bun.Server<undefined>) {}

  /** @throws DlfsError where a folder is none, the token is empty, or the port cannot be had */
  static async open({
    folders,
    port,
    hostname = "127.0.0.1",
    token,
  }: DashboardServerOptions): Promise<DashboardServer> {
    const dashboard = await Dashboard.open(folders, new AccessGate(token));
    try {
      const server = Bun.serve({
        ...{ port, hostname, maxRequestBodySize: 1024 },
        fetch: (request) => dashboard.handle(request),
        error: () => failure(500, "something went wrong here"),
      });
      return new DashboardServer(server);
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
  }
}
