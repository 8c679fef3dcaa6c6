package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Bounds of one transaction.
const (
	maxBatch = 1000 // reports
	maxClaim = 500  // steps
	minClaim = 16   // steps that a claim has room for, however few the last one found
	maxLanes = 64   // lanes of a claim
)

// flushTimeout bounds a transaction. It belongs to no caller: a commit under way is never cancelled by one.
const flushTimeout = 30 * time.Second

// flush is the work of one transaction.
type flush struct {
	began   time.Time
	submits []*pendingSubmit
	reports []*pendingReport
	claim   *store.Claim
	lanes   []claimedLane
	slots   []*session // of all lanes, one after another
}

// claimedLane is a lane's part of a claim.
type claimedLane struct {
	*lane
	first, count int // its slots
	full         bool
}

// flushLoop runs transactions while there is work. Whatever gathers while one is under way makes up the next: batches
// grow with the load by themselves, and an idle server answers at once.
func (h *hub) flushLoop() {
	for {
		f, ok := h.next()
		if !ok {
			return
		}
		h.run(f)
		h.mu.Lock()
		delete(h.running, f)
		h.mu.Unlock()
	}
}

// gathered needs h.mu: there is something for the next transaction, and a loop is woken if it may begin.
func (h *hub) gathered() {
	if h.mayBegin() {
		h.work.Signal()
	}
}

// mayBegin needs h.mu. It tells whether a transaction may begin beside those that are under way. If none may, one will when
// the first returns, when that takes long, or when plenty wait.
func (h *hub) mayBegin() bool {
	for f := range h.running {
		if len(f.submits)+len(f.reports) > little && time.Since(f.began) < long && len(h.reports) < plenty {
			h.arm(f.began.Add(long))
			return false
		}
	}
	return true
}

// begin needs h.mu.
func (h *hub) begin(f *flush) {
	f.began = time.Now()
	h.running[f] = true
	if len(h.submits)+len(h.reports) > 0 {
		h.gathered() // more than one transaction takes
	}
}

// next waits for work. Idle frames are sent from here, so that a worker that hears them knows its dispatcher alive.
func (h *hub) next() (*flush, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		if h.closed {
			for _, p := range h.submits {
				p.answer(store.SubmitAnswer{}, goingAway())
			}
			for _, p := range h.reports {
				p.answer(nil, goingAway())
			}
			h.submits, h.reports = nil, nil
			return nil, false
		}
		h.beat()
		if !h.mayBegin() {
			h.work.Wait()
			continue
		}
		f := &flush{}
		f.submits, f.reports = h.takeSubmits(), h.takeReports()
		h.plan(f)
		if len(f.submits) > 0 || len(f.reports) > 0 || f.claim != nil {
			h.begin(f)
			return f, true
		}
		h.work.Wait()
	}
}

// takeReports needs h.mu. Two reports of one token never share a batch: the later one waits for the next.
func (h *hub) takeReports() []*pendingReport {
	if len(h.reports) == 0 {
		return nil
	}
	var taken, left []*pendingReport
	seen := make(map[[16]byte]bool, min(len(h.reports), maxBatch))
	size := 0
	for i, p := range h.reports {
		if len(taken) == maxBatch || size > maxBatchBytes {
			left = append(left, h.reports[i:]...)
			break
		}
		if seen[p.report.Token.Nonce] {
			left = append(left, p)
			continue
		}
		seen[p.report.Token.Nonce] = true
		size += len(p.report.Results) + len(p.report.Failure.Details)
		taken = append(taken, p)
	}
	h.reports = left
	return taken
}

// maxBatchBytes bounds the payload of one transaction.
const maxBatchBytes = 8 << 20

// run executes a flush and hands out what it brought.
func (h *hub) run(f *flush) {
	ctx, cancel := context.WithTimeout(h.e.background, flushTimeout)
	defer cancel()
	reports := make([]task.Report, len(f.reports))
	for i, p := range f.reports {
		reports[i] = *p.report
	}
	tasks := make([]store.NewTask, len(f.submits))
	for i, p := range f.submits {
		tasks[i] = p.task
	}
	start := time.Now()
	flushed, err := h.e.store.Turn(ctx, h.id, tasks, reports, f.claim)
	h.e.stats.flush(len(reports), len(flushed.Grants), time.Since(start))
	h.e.stats.stored(flushed.Submitted, err)
	if err != nil {
		h.release(f, nil, nil)
		h.fail(ctx, f, err)
		return
	}
	for i := range flushed.Gates {
		h.e.clock.learn(start, flushed.Gates[i].At)
	}
	h.release(f, flushed.Grants, flushed.Gates)
	h.distribute(f, flushed.Grants)
	flushed.Change.Wake = f.unmet(flushed.Change.Wake, flushed.Grants)
	// The gates were read after all of it: this hub need not look again, others may have to.
	told := worthTelling(flushed.Change.Circuits, flushed.Gates, len(reports))
	flushed.Change.Circuits = nil
	// Wakes before answers: a caller that was answered finds its step's children on their way.
	h.e.changed(flushed.Change)
	if len(told) > 0 {
		h.e.notifier.add(store.Change{Circuits: told})
		h.e.pingCircuitWatches()
	}
	for i, p := range f.submits {
		p.answer(flushed.Submitted[i], nil)
	}
	for i, p := range f.reports {
		switch a := flushed.Answers[i]; {
		case a.Late:
			h.e.late(p)
		case a.Refused != nil:
			p.answer(nil, a.Refused)
		default:
			p.answer(a.Reported, nil)
		}
	}
}

// unmet leaves out the wakes that the flush's own claim has met: it looked into the lane after the steps were woken, had
// slots to spare, and took as many as were woken at least. Heeding them would claim from an emptied lane.
func (f *flush) unmet(wakes []store.Wake, grants []store.Grant) []store.Wake {
	if f.claim == nil || len(grants) == 0 {
		return wakes
	}
	found, woken := map[int32]int{}, map[int32]int{}
	for _, g := range grants {
		found[g.LaneID]++
	}
	for _, w := range wakes {
		woken[w.LaneID] += w.Count
	}
	return slices.DeleteFunc(wakes, func(w store.Wake) bool {
		for i, l := range f.claim.Lanes {
			if l.LaneID == w.LaneID {
				n := found[l.LaneID]
				return w.DueAt == nil && n < f.lanes[i].count && n >= woken[w.LaneID] && w.Seq > l.After
			}
		}
		return false
	})
}

// fail answers tasks and reports whose transaction failed. A value that the database refuses must not fail its neighbours:
// the batch is split, the tasks from the reports and then by half, until it stands alone.
func (h *hub) fail(ctx context.Context, f *flush, err error) {
	var refused *task.Error
	if !store.DataError(err) && !errors.As(err, &refused) {
		h.troubled(ctx, err)
	}
	submits, reports := f.submits, f.reports
	if len(submits) > 0 && len(reports) > 0 && (store.DataError(err) || refused != nil) {
		h.run(&flush{submits: submits})
		h.run(&flush{reports: reports})
		return
	}
	if n := len(submits) + len(reports); n > 1 && store.DataError(err) {
		s, r := len(submits)/2, len(reports)/2
		h.run(&flush{submits: submits[:s], reports: reports[:r]})
		h.run(&flush{submits: submits[s:], reports: reports[r:]})
		return
	}
	for _, p := range submits {
		p.answer(store.SubmitAnswer{}, err)
	}
	for _, p := range reports {
		p.answer(nil, err)
	}
}

// release ends the claim of a flush in memory: reservations that brought nothing are given up, and each lane is judged by
// what was found in it.
func (h *hub) release(f *flush, grants []store.Grant, gates []store.Gate) {
	if f.claim == nil && len(gates) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heedGates(gates)
	if f.claim == nil {
		h.work.Broadcast()
		return
	}
	found, fromBackoff := map[int32]int{}, map[int32]int{}
	for _, g := range grants {
		found[g.LaneID]++
		if g.Seq == nil {
			fromBackoff[g.LaneID]++
		}
	}
	// Each slot costs a token, drawn and sent, whether a step takes it or not: there are about twice as many as were needed.
	h.claimRoom = min(max(2*len(grants), minClaim), maxClaim)
	now := time.Now()
	for i := range f.lanes {
		x := &f.lanes[i]
		x.claiming = false
		if x.gate != nil {
			x.gate.claiming = false
		}
		// A slot brought nothing when the lane had too few steps, or when its session has moved, wherever it stands in the row.
		brought := map[int32]int{}
		for _, g := range grants {
			if g.LaneID == x.ID {
				brought[g.SessionID]++
			}
		}
		for _, s := range f.slots[x.first : x.first+x.count] {
			if brought[s.id]--; brought[s.id] < 0 {
				s.unreserve(x.Handler)
			}
		}
		for _, g := range grants {
			if g.LaneID == x.ID && g.Seq != nil && *g.Seq > x.cursor {
				x.cursor = *g.Seq
			}
		}
		if x.wokenAt > 0 {
			x.cursor, x.wokenAt = min(x.cursor, x.wokenAt-1), 0
		}
		// A full look that found its fill has not seen all that stands behind the cursor.
		x.lane.full = x.lane.full || x.full && found[x.ID] == x.count
		switch {
		case found[x.ID] == x.count, x.again:
			x.hot = true
		case x.gate != nil && x.gate.bounded && x.gate.room <= 0:
			x.hot = true // who knows what stands there: its circuit let no more go
		case fromBackoff[x.ID] > 0:
			go h.probeLane(x.lane) // learn when the next one is due
		}
		if x.full {
			x.unswept = found[x.ID] > 0 || x.again
			x.sweepAt = now.Add(fullLookEvery)
		} else if found[x.ID] > 0 {
			x.unswept = true
		}
		if x.unswept {
			if x.sweepAt.Before(now) {
				x.sweepAt = now.Add(fullLookEvery)
			}
			h.arm(x.sweepAt)
		}
		x.again = false
	}
	h.work.Broadcast()
}

// probeLane looks when a lane's next backing-off step is due.
func (h *hub) probeLane(x *lane) {
	ctx, cancel := context.WithTimeout(h.e.background, flushTimeout)
	defer cancel()
	began := time.Now()
	probes, err := h.e.store.ProbeLanes(ctx, h.id, h.lookInto([]string{x.Handler}))
	if err == nil {
		for i := range probes {
			h.e.clock.learn(began, probes[i].At)
		}
		h.probed(probes)
	}
}
