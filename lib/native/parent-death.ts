/** Linux' prctl, for processes that must not outlive the one that started them. */
import { dlopen } from "bun:ffi";

const PR_SET_PDEATHSIG = 1;
const SIGNALS = { SIGKILL: 9, SIGTERM: 15 } as const;

/**
 * The operating system ends this process when its parent ends, however that happens and whatever this process is at. Does nothing
 * where the system has no such thing; true where it has.
 *
 * @param parent the parent's process id: where it has ended already, this process ends now
 * @param signal what ends it: SIGTERM lets it save its state
 */
export function endWithParent(parent: number, signal: keyof typeof SIGNALS = "SIGKILL"): boolean {
  try {
    const { symbols } = dlopen("libc.so.6", {
      prctl: { args: ["i32", "i64", "i64", "i64", "i64"], returns: "i32" },
    });
    if (symbols.prctl(PR_SET_PDEATHSIG, SIGNALS[signal], 0, 0, 0) !== 0) return false;
  } catch {
    return false; // another system, or another C library
  }
  if (process.ppid !== parent) process.kill(process.pid, signal);
  return true;
}
