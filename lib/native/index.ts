export { check, DlfsError, ErrorCode, firstError } from "./error";
export {
  type BackendName,
  type BackendProbe,
  backendNames,
  chooseBackend,
  cString,
  type DeviceInfo,
  fromCString,
  listDevices,
  loadLibrary,
  type NativeLibrary,
  probeBackends,
} from "./library";
export { borrowHostMemory } from "./memory";
export { endWithParent } from "./parent-death";
export { type Address, constants, type HostView, headerHash, type NativeFunctions } from "./symbols.generated";
