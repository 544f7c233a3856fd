import { channelCases } from "./cases/channel";
import { describeCases } from "./check";

describeCases("operations on channels", channelCases);
