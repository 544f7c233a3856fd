/** The page at /, on which an image can be tried. */
import type { Route } from "./routes";

export const pageRoutes = (): Route[] => [];
