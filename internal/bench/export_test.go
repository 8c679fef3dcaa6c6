package bench

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Tiny makes a run of a few seconds: enough work to be lost or doubled, far too little for a figure.
func (c *Config) Tiny() {
	c.sizes = &sizes{
		rounds: 1, warmup: 100 * time.Millisecond, window: 500 * time.Millisecond, callWindow: 100 * time.Millisecond,
		floorWindow: 100 * time.Millisecond, probes: 20, chains: 5, chainEvery: 10 * time.Millisecond,
		longChains: 1, chainSteps: 10, manyChains: 5, manySteps: 3,
	}
}

// BeforeVerify has f called after the load, before the database is checked, with a connection to the server's database and
// the check itself.
func (c *Config) BeforeVerify(f func(ctx context.Context, conn *pgx.Conn, verify func(context.Context) error) error) {
	c.beforeVerify = func(ctx context.Context, w *world) error { return f(ctx, w.databases.conn, w.verify) }
}
