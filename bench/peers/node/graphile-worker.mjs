// Drives graphile-worker as bench/peers tells it to, with the settings of its own page on performance: a local queue, and
// completions in batches.
import { readFileSync } from 'node:fs';
import pg from 'pg';
import { Logger, makeWorkerUtils, run, runMigrations } from 'graphile-worker';
import { databaseURL, payload, serve } from './harness.mjs';

const { version } = JSON.parse(readFileSync(new URL('./node_modules/graphile-worker/package.json', import.meta.url)));
const logger = new Logger(() => (level, message) => { if (level === 'error') console.error(message); });
const preset = {
  worker: {
    connectionString: databaseURL,
    logger,
    concurrentJobs: 24,
    maxPoolSize: 26,
    localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  },
};
await runMigrations({ preset });
const pool = new pg.Pool({ connectionString: databaseURL, max: 10 });
pool.on('error', (error) => console.error(`graphile-worker: ${error.message}`));
const utils = await makeWorkerUtils({ pgPool: pool, preset: { worker: { logger } } });
let runner;

await serve({ peer: 'graphile-worker', version, batch: 1000, submitters: 2 }, {
  submit: (count, number) => utils.addJobs(Array.from({ length: count }, () => ({ identifier: 'noop', payload: { number, payload } }))),
  submitOne: (number) => utils.addJob('noop', { number, payload }),
  async work(started) {
    runner = await run({ preset, taskList: { noop: (job) => started(job.number) } });
  },
  // It keeps no completed job: what is gone is done.
  async completed(submitted) {
    const { rows } = await pool.query('select count(*)::int as n from graphile_worker._private_jobs');
    return submitted - rows[0].n;
  },
  async close() {
    await runner?.stop();
    await pool.end();
  },
});
