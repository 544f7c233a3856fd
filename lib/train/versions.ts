import packageJson from "../../package.json";
import type { CheckpointVersions } from "../formats";
import { loadLibrary } from "../native";
import type { Device } from "../tensor";

/** What writes a file: dlfs, Bun, and the device with its libraries. */
export function versionsOf(device: Device): CheckpointVersions {
  return {
    dlfs: packageJson.version,
    bun: Bun.version,
    backend: device.backend,
    libraries: { ...parseVersions(loadLibrary(device.backend).versions), device: device.info.name },
  };
}

function parseVersions(text: string): Record<string, string> {
  return Object.fromEntries(
    text.split(", ").flatMap((entry) => {
      const split = entry.indexOf("=");
      return split > 0 ? [[entry.slice(0, split), entry.slice(split + 1)]] : [];
    }),
  );
}
