import { convCases } from "./cases/conv";
import { describeCases } from "./check";

describeCases("convolution", convCases);
