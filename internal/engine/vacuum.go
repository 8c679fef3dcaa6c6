package engine

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	vacuumLookEvery = time.Second
	// vacuumAfter is how many steps this server has moved through the live tables before it cleans them. Each leaves a dead row
	// in two or three of them, which every look at a lane from its beginning passes by.
	vacuumAfter = 20_000
	// vacuumShare: cleaning takes no more than one part of so many of the time. Under an old snapshot it removes nothing, and
	// reads more every time.
	vacuumShare = 50
)

// vacuumLoop keeps the live tables small. They are a few thousand rows that are written anew all the time; a cluster's
// autovacuum comes by once a minute, when a busy server has left a million dead ones. SKIP_LOCKED: where autovacuum or another
// server is at it already, nothing is left to do. The login must own the tables, as the one that migrates does; any other leaves
// them to autovacuum.
func (e *Engine) vacuumLoop(ctx context.Context) error {
	var moved int64 // when the tables were last cleaned
	var next time.Time
	return e.onConnection(ctx, e.conf.Side, func(ctx context.Context, conn *pgx.Conn) error {
		var owns bool
		const ask = "select bool_and(pg_has_role(session_user, relowner, 'USAGE')) from pg_class where oid in ('ready'::regclass, 'backoff'::regclass, 'lease'::regclass, 'parked'::regclass)"
		if err := conn.QueryRow(ctx, ask).Scan(&owns); err != nil {
			return err
		}
		if !owns {
			e.log.InfoContext(ctx, "the live tables are left to autovacuum: the login does not own them")
			<-ctx.Done()
			return nil
		}
		ticker := time.NewTicker(vacuumLookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
			// A step that comes and goes is counted twice.
			now := e.stats.granted.Load() + e.stats.reported.Load()
			if now-moved < 2*int64(e.conf.VacuumAfter) || time.Now().Before(next) {
				continue
			}
			began := time.Now()
			// Shortening the files would take an exclusive lock, to no end: they grow again at once.
			if _, err := conn.Exec(ctx, "vacuum (skip_locked, truncate off, index_cleanup on) ready, backoff, lease, parked", pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
			moved, next = now, time.Now().Add(vacuumShare*time.Since(began))
			e.stats.vacuums.Add(1)
		}
	})
}
