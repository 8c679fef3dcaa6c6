package bench

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Tiny makes a run of a few seconds: enough work to be lost or doubled, far too little for a figure.
func (c *Config) Tiny() {
	c.sizes = &sizes{
		rounds: 1, warmup: 100 * time.Millisecond, window: 500 * time.Millisecond, callWindow: time.Second, // a thousand callers, under the race detector
		floorWindow: 300 * time.Millisecond, probes: 20, sample: -1, chains: 5, chainEvery: 10 * time.Millisecond,
		longChains: 1, chainSteps: 10, manyChains: 5, manySteps: 3,
		fanRounds: 1, wideFan: 300, narrowFan: 10, fans: 3, fanServers: 2,
		dueRounds: 2, dueSteps: 300, dueMargin: 300 * time.Millisecond,
		backlogs: []int64{300, 600}, aside: 100, claimTurns: 2, claims: 1,
		oldBefore: 200 * time.Millisecond, oldDuring: 300 * time.Millisecond, oldRate: 500,
		idleStreams: 20, idleWindow: 100 * time.Millisecond, idleSettle: 10 * time.Millisecond, idleFloorWindow: 100 * time.Millisecond,
		replicas: []int{1, 2}, wakes: 20, wakeEvery: 5 * time.Millisecond, replicaWindow: 500 * time.Millisecond,
		tenantBacklog: 3000, tenantBeats: 10, tenantEvery: 10 * time.Millisecond,
		payloads: []int{100, 64 << 10, 128 << 10}, payloadBytes: 256 << 10,
		freshSteps: 500,
	}
}

// What pure functions decide.
var (
	Payload        = payload
	FirstWords     = firstWords
	WorstStatement = worstStatement
)

// BeforeVerify has f called after the load, before the database is checked, with a connection to the server's database and
// the check itself.
func (c *Config) BeforeVerify(f func(ctx context.Context, conn *pgx.Conn, verify func(context.Context) error) error) {
	c.beforeVerify = func(ctx context.Context, w *world) error { return f(ctx, w.conn, w.holdsUp) }
}
