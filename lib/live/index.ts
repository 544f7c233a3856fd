export { AccessGate, denied, failure } from "./access";
export { LiveBus, type LiveBusOptions, type LiveSink, type ReaderOptions, type ReaderStatus } from "./bus";
export { HttpSink, type HttpSinkOptions } from "./http-sink";
export { Journal, type JournalEntry } from "./journal";
export { applyEdits, type LabelledData } from "./label-edits";
export { FileSink, LiveFileReader, writeLiveFile } from "./live-file";
export { LiveServer, type LiveServerOptions } from "./server";
export { type Answer, LiveSession, type LiveSessionOptions, type LiveTraining } from "./session";
