import { describeCases } from "./check";
import { elementwiseCases } from "./cases/elementwise";

describeCases("elementwise operations", elementwiseCases);
