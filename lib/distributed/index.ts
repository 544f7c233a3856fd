export { firstHost, parseAddress, type Ranks, ranksFromEnvironment } from "./environment";
export { freePort, keepRestartNote, type LaunchOptions, launch, restartNote } from "./launch";
export { defaultPatience, type Facts, type Patience } from "./messages";
export { deviceOfRank, exitCodes, ProcessGroup, type ProcessGroupOptions, withRanks } from "./process-group";
