package store_test

import (
	"slices"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
)

// mover is a verb after whose commit a session of an old epoch is granted nothing.
type mover struct {
	name string
	sql  string
	args func(*world) []any
}

var movers = []mover{
	{"drain", "drain_session", func(w *world) []any { return []any{w.ns, "worker", "1", w.now} }},
	{"close", "close_session", func(w *world) []any { return []any{w.session.SessionID, w.session.Epoch, w.now} }},
	{"take-over", "open_session", func(w *world) []any {
		return []any{w.ns, "worker", "1", [16]byte{2}, 10, []string{"s"}, nil, "", "", time.Minute, w.now}
	}},
}

// claimFor is a claim of all lanes, with so many slots of each session.
func (w *world) claimFor(n int, sessions ...store.SessionFence) *store.Claim {
	w.Helper()
	claim := &store.Claim{Sessions: sessions}
	rows, err := w.db.Pool.Query(w.Context(), "select lane_id from lane order by 1")
	w.ok(err)
	defer rows.Close()
	for rows.Next() {
		var want store.LaneWant
		w.ok(rows.Scan(&want.LaneID))
		for _, s := range sessions {
			want.Slots = append(want.Slots, slices.Repeat([]int32{s.SessionID}, n)...)
		}
		claim.Lanes = append(claim.Lanes, want)
	}
	w.ok(rows.Err())
	return claim
}

// What moves a session waits for the claims that are under way, so that whoever moved it sees all that was granted.
func TestAMoveWaitsForTheClaimsUnderWay(t *testing.T) {
	for _, m := range movers {
		t.Run(m.name, func(t *testing.T) {
			w := newWorld(t)
			w.submit(step())
			_, end, err := w.s.HoldClaim(t.Context(), w.ns, w.claimFor(1, w.session))
			w.ok(err)
			defer end() //nolint:errcheck // committed below where all is well
			conn := w.db.Conn(t)
			moved := make(chan error, 1)
			go func() {
				_, err := conn.Exec(t.Context(), store.SQL(m.sql), m.args(w)...)
				moved <- err
			}()
			w.untilBlocked(1)
			w.ok(end())
			w.ok(<-moved)
		})
	}
}

// A claim that waits for a move is granted nothing for its session, whatever the claim's snapshot shows: neither where it waits
// for the very row, nor where the row was changed and moved while it waited for another one.
func TestAClaimFindsNoSessionThatMoved(t *testing.T) {
	for _, m := range movers {
		t.Run(m.name, func(t *testing.T) {
			w := newWorld(t)
			w.submit(step())
			w.submit(step())
			stays, moves := w.session, w.open("other")
			mover, looker := w.db.Conn(t), w.db.Conn(t)
			exec := func(sql string, args ...any) {
				t.Helper()
				_, err := mover.Exec(t.Context(), sql, args...)
				w.ok(err)
			}
			claim := func(sessions ...store.SessionFence) <-chan []store.Grant {
				got := make(chan []store.Grant, 1)
				want := w.claimFor(1, sessions...)
				go func() {
					grants, _, err := w.s.Claim(t.Context(), w.ns, want)
					if err != nil {
						t.Errorf("the claim failed: %v", err)
					}
					got <- grants
				}()
				w.untilBlocked(1)
				return got
			}

			// The row of the session that stays is held by somebody; meanwhile the other one changes, and moves.
			exec("begin")
			exec("select from worker_session where session_id = $1 for update", stays.SessionID)
			got := claim(stays, moves)
			_, err := looker.Exec(t.Context(), "update worker_session set seen_at = seen_at + interval '1 s' where session_id = $1", moves.SessionID)
			w.ok(err)
			w.session = moves
			args := m.args(w)
			for i, a := range args {
				if a == "worker" {
					args[i] = "other"
				}
			}
			_, err = looker.Exec(t.Context(), store.SQL(m.sql), args...)
			w.ok(err)
			exec("commit")
			if grants := <-got; len(grants) != 1 || grants[0].SessionID != stays.SessionID {
				t.Errorf("granted %v, not one step to the session that stayed", grants)
			}

			// The claim waits for the move itself.
			w.session = stays
			exec("begin")
			exec(store.SQL(m.sql), m.args(w)...)
			got = claim(w.session)
			exec("commit")
			if grants := <-got; len(grants) != 0 {
				t.Errorf("granted %d steps to a session that had moved", len(grants))
			}
		})
	}
}
