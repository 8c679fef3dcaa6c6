// What the programs here share: the twin of ../harness/harness.go, which tells what the commands mean.
import readline from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

const ahead = 10_000;
const timeout = 240_000;
const pollEvery = 10;
const unnumbered = -1;

export const payload = 'x'.repeat(84);
export const databaseURL = process.env.PEER_TARGET;

/**
 * Obeys the commands of standard input, and ends the process.
 *
 * @param who {{ peer: string, version: string, batch: number, submitters: number }}
 * @param queue {{
 *   submit(count: number, number: number): Promise<void>,
 *   submitOne(number: number): Promise<void>,
 *   work(started: (number: number) => void): Promise<void>,
 *   completed(submitted: number): Promise<number>,
 *   close(): Promise<void>,
 * }}
 */
export async function serve(who, queue) {
  let working = false, submitted = 0, ran = 0;
  let intended = [], latencies = [];
  const now = () => performance.now();
  const say = (line) => console.log(JSON.stringify(line));

  const work = async () => {
    if (working) return;
    working = true;
    await queue.work((number) => {
      if (number >= 0 && number < intended.length) latencies.push(now() - intended[number]);
      ran++;
    });
  };
  const submit = async (count, bounded) => {
    let left = count;
    await Promise.all(Array.from({ length: who.submitters }, async () => {
      while (left > 0) {
        const n = Math.min(left, who.batch);
        left -= n;
        while (bounded && submitted - ran > ahead) await sleep(1);
        await queue.submit(n, unnumbered);
        submitted += n;
      }
    }));
  };
  // Random moments, the same in every run, so that no queue's own rhythm meets ours.
  const onTime = async (rate, seconds) => {
    let state = 12345;
    const random = () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
    };
    const begin = now();
    intended = [];
    latencies = [];
    for (let at = 0; (at += (-Math.log(1 - random()) / rate) * 1000) < seconds * 1000;) intended.push(begin + at);
    const submits = [];
    for (const [number, at] of intended.entries()) {
      // A timer is late by up to a millisecond; what it is late by counts as latency, as everywhere.
      if (at > now()) await sleep(at - now());
      submits.push(queue.submitOne(number).then(() => { submitted++; }));
    }
    await Promise.all(submits);
  };
  const finish = async () => {
    const end = now() + timeout;
    while (ran < submitted && now() < end) await sleep(2);
    for (;;) {
      const n = await queue.completed(submitted);
      if (n >= submitted) return;
      if (now() > end) throw new Error(`${ran} of ${submitted} jobs have been run and ${n} are complete`);
      await sleep(pollEvery);
    }
  };
  const percentiles = (jobs) => {
    if (latencies.length !== jobs || jobs === 0) throw new Error(`${latencies.length} jobs began, of ${jobs} submitted`);
    latencies.sort((a, b) => a - b);
    const ms = (i) => +latencies[Math.min(i, jobs - 1)].toFixed(3);
    return { p50_ms: ms(jobs >> 1), p99_ms: ms(Math.floor((jobs * 99) / 100)), max_ms: ms(jobs - 1) };
  };
  const obey = async (line) => {
    const [command, first, second] = line.split(' ');
    const begun = now();
    let before = submitted;
    switch (command) {
      case 'fill':
        await submit(+first, false);
        break;
      case 'drain':
        before = 0;
        await work();
        break;
      case 'life':
        await work();
        await submit(+first, true);
        break;
      case 'latency':
        await work();
        await onTime(+first, +second);
        break;
      default:
        throw new Error(`there is no command ${line}`);
    }
    if (command !== 'fill') await finish();
    const jobs = submitted - before;
    return { command, jobs, seconds: (now() - begun) / 1000, ...(command === 'latency' ? percentiles(jobs) : {}) };
  };

  try {
    say(who);
    for await (const line of readline.createInterface({ input: process.stdin })) say(await obey(line));
    await queue.close();
    process.exit(0);
  } catch (error) {
    console.error(`${who.peer}: ${error.stack}`);
    process.exit(1);
  }
}
