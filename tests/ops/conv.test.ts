import { describeCases } from "./check";
import { convCases } from "./cases/conv";

describeCases("convolution", convCases);
