export { LiveBus, type LiveBusOptions, type LiveSink, type ReaderOptions, type ReaderStatus } from "./bus";
export { HttpSink, type HttpSinkOptions } from "./http-sink";
export { FileSink, LiveFileReader } from "./live-file";
