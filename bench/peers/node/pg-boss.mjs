// Drives pg-boss as bench/peers tells it to: four workers that take batches of 5,000 jobs and come back at once while
// there are any. One that finds nothing looks again after half a second, the least that it can be set to.
//
// Each fetch sorts the whole backlog, so large batches are what makes it fast: 500 at a time work off less than half as much.
import { readFileSync } from 'node:fs';
import pg from 'pg';
import PgBoss from 'pg-boss';
import { databaseURL, payload, serve } from './harness.mjs';

const { version } = JSON.parse(readFileSync(new URL('./node_modules/pg-boss/package.json', import.meta.url)));
const name = 'noop';
const batchSize = 5000;
const boss = new PgBoss({ connectionString: databaseURL, max: 20 });
boss.on('error', (error) => console.error(`pg-boss: ${error.message}`));
await boss.start();
await boss.createQueue(name);
const pool = new pg.Pool({ connectionString: databaseURL, max: 2 });
pool.on('error', (error) => console.error(`pg-boss: ${error.message}`));

await serve({ peer: 'pg-boss', version, batch: 1000, submitters: 2 }, {
  submit: (count, number) => boss.insert(Array.from({ length: count }, () => ({ name, data: { number, payload } }))),
  submitOne: (number) => boss.send(name, { number, payload }),
  async work(started) {
    for (let i = 0; i < 4; i++) {
      const id = await boss.work(name, { batchSize, pollingIntervalSeconds: 0.5 }, async (jobs) => {
        for (const job of jobs) started(job.data.number);
        boss.notifyWorker(id);
      });
    }
  },
  async completed() {
    const { rows } = await pool.query("select count(*)::int as n from pgboss.job where name = $1 and state = 'completed'", [name]);
    return rows[0].n;
  },
  async close() {
    await boss.stop({ graceful: false });
    await pool.end();
  },
});
