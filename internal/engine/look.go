package engine

import (
	"time"

	"github.com/taskerhq/tasker/internal/store"
)

// A lane must be looked into behind the cursor, too: a row that was committed late stands there, and the word of it may be
// lost. But all rows that were ever claimed stood there as well, and an old snapshot keeps every one of them, dead, for the look
// to read. So a hub learns for each lane up to which seq nothing stands and nothing new can appear, and looks from there on.
//
// What comes back from a dispatch keeps its old seq. Looks find it by an index of its own (probe_lanes.sql).

const (
	// settled is how old a look must be before it is relied upon. The claims of what it found gone may be forgotten by a crash
	// of the database, since their commits do not wait for the disk: for three times wal_writer_delay at most.
	settled = 600 * time.Millisecond

	// wholeLookEvery is how often looks begin at the beginning all the same, though they take no more than one part in
	// wholeLookShare of the time. They make good what should not be: a transaction that drew a seq and then took longer than
	// from one look to the next to write its first row, or a crash that forgot more than it should.
	wholeLookEvery = 30 * time.Second
	wholeLookShare = 50
)

// horizon finds out up to which seq nobody will put new rows into ready any more.
type horizon struct {
	passed int64 // up to it, nobody will
	drawn  int64 // the last seq that had been drawn at the look before
	// What was drawn up to awaited was drawn by transactions before fence.
	awaited, fence int64
}

// observe heeds a look that began after the last one was over. The seqs that were drawn until then belong to transactions that
// the snapshot of this look knows. They have ended, and later looks see their rows, as soon as the oldest one in progress is a
// later one. It is false when the sequence has gone back, as after a restore: then nothing is known any more.
func (z *horizon) observe(seen store.Horizon) bool {
	if seen.Drawn < z.drawn {
		*z = horizon{}
		return false
	}
	if seen.Oldest >= z.fence {
		z.passed, z.awaited, z.fence = z.awaited, z.drawn, seen.Next
	}
	if seen.Oldest >= z.fence {
		z.passed = z.awaited // nothing is in progress
	}
	z.drawn = seen.Drawn
	return true
}

// lookInto gives a look into the lanes of handlers, from where they have to be looked into.
func (h *hub) lookInto(handlers []string) store.Look {
	h.mu.Lock()
	defer h.mu.Unlock()
	look := store.Look{Handlers: handlers}
	for _, name := range handlers {
		if x := h.handlers[name]; x != nil {
			for _, l := range x.lanes {
				if l.low == 0 {
					continue
				}
				look.Lanes, look.After = append(look.Lanes, l.ID), append(look.After, l.low)
			}
		}
	}
	return look
}

// looked heeds a look of the sweep, none of which begins before the one before has been heeded.
func (h *hub) looked(probes []store.Probed) {
	h.probed(probes)
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if len(probes) == 0 || now.Sub(h.lookedAt) < settled {
		return
	}
	h.lookedAt = now
	if !h.horizon.observe(probes[0].Horizon) {
		for _, x := range h.lanes {
			x.low, x.clear = 0, 0
		}
		return
	}
	for _, p := range probes {
		h.lane(p.Lane).cleared(p.Seq, h.horizon.passed)
	}
}

// cleared heeds that no row stands below first, nil for nowhere, and none will appear up to passed. What the look before
// cleared is settled.
func (x *lane) cleared(first *int64, passed int64) {
	upTo := passed
	if first != nil {
		upTo = min(upTo, *first-1)
	}
	if first != nil && *first <= x.low {
		x.low, x.clear = upTo, upTo // something came back, or what should not be
		return
	}
	x.low, x.clear = max(x.low, x.clear), max(x.clear, upTo)
}
