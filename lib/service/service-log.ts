/** Where the model side says what happens: pino's loggers fit, through a small adapter. Messages here may name paths. */
export interface ServiceLog {
  info(message: string, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: string, fields?: Readonly<Record<string, unknown>>): void;
  error(message: string, fields?: Readonly<Record<string, unknown>>): void;
}

/** Says nothing. */
export const silentLog: ServiceLog = { info: () => {}, warn: () => {}, error: () => {} };

/** A log whose lines have further fields. */
export function withFields(log: ServiceLog, fields: Readonly<Record<string, unknown>>): ServiceLog {
  return {
    info: (message, more) => log.info(message, { ...fields, ...more }),
    warn: (message, more) => log.warn(message, { ...fields, ...more }),
    error: (message, more) => log.error(message, { ...fields, ...more }),
  };
}
