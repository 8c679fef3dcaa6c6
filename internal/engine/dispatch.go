package engine

import (
	"cmp"
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
// the first returns, or when that takes long.
func (h *hub) mayBegin() bool {
	for f := range h.running {
		if len(f.submits)+len(f.reports) > little && time.Since(f.began) < long {
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

// plan needs h.mu: it chooses lanes and reserves capacity for a claim. With reports to record, every lane that has room
// is looked into, since the reports may wake steps of any; and what they conclude counts as free, for this transaction
// only: until it has committed, no other may grant in its place, and if it fails, nothing was concluded.
func (h *hub) plan(f *flush) {
	if h.draining || len(h.sessions) == 0 || time.Now().Before(h.pause) {
		return
	}
	h.expect(f.submits)
	restore := h.anticipate(f.reports)
	perLane := h.fillSlots(len(f.reports) > 0, max(h.claimRoom, min(2*max(len(f.submits), len(f.reports)), maxClaim)))
	restore()
	if len(perLane) == 0 {
		return
	}
	f.claim = &store.Claim{}
	used := map[int32]*session{}
	for _, x := range perLane {
		l := claimedLane{lane: x.lane, first: len(f.slots), count: len(x.sessions), full: x.lane.full}
		want := store.LaneWant{LaneID: x.lane.ID, After: x.lane.cursor, Slots: make([]int32, len(x.sessions))}
		if l.full {
			want.After = x.lane.low
		}
		for i, s := range x.sessions {
			want.Slots[i] = s.id
			used[s.id] = s
		}
		x.lane.claiming, x.lane.again, x.lane.hot, x.lane.full = true, false, false, false
		f.slots = append(f.slots, x.sessions...)
		f.lanes = append(f.lanes, l)
		f.claim.Lanes = append(f.claim.Lanes, want)
	}
	f.wantCircuits()
	for _, s := range used {
		f.claim.Sessions = append(f.claim.Sessions, store.SessionFence{
			SessionID: s.id, Epoch: s.epoch, DeliveryTimeout: s.reg.DeliveryTimeout, Beats: s.reg.Beats,
		})
	}
	slices.SortFunc(f.claim.Sessions, func(a, b store.SessionFence) int { return cmp.Compare(a.SessionID, b.SessionID) })
}

// expect needs h.mu: tasks that are about to be stored put steps into the lanes of their roots.
func (h *hub) expect(submits []*pendingSubmit) {
	for _, p := range submits {
		if p.task.NotBefore != nil {
			continue
		}
		for i, id := range p.task.Lanes {
			if len(p.task.Steps[i].Parents) > 0 {
				continue
			}
			if x := h.lanes[id]; x != nil && !x.claiming {
				x.hot = true
			}
		}
	}
}

// anticipate needs h.mu: it forgets the leases that reports will conclude, until restore is called.
func (h *hub) anticipate(reports []*pendingReport) (restore func()) {
	type leaving struct {
		*session
		nonce   [16]byte
		handler string
	}
	var gone []leaving
	for _, p := range reports {
		nonce := p.report.Token.Nonce
		if s := h.sessions[p.report.Token.SessionID]; s != nil {
			if handler, ok := s.leases[nonce]; ok {
				s.forget(nonce)
				gone = append(gone, leaving{s, nonce, handler})
			}
		}
	}
	return func() {
		for _, l := range gone {
			l.keep(l.nonce, l.handler)
		}
	}
}

// laneSlots is a lane and the sessions its next steps would go to.
type laneSlots struct {
	lane     *lane
	sessions []*session
}

// fillSlots needs h.mu. It hands out slots one by one: handlers take turns, a handler's lanes by their weights, and its
// sessions take turns, each as far as it has room. Lanes where something is known to stand come first, with most slots at
// least; with all, the others share as many again, for what reports are about to wake in them.
func (h *hub) fillSlots(all bool, most int) (out []laneSlots) {
	h.plans++
	now := time.Now()
	lets := func(x *lane) bool { return !x.claiming && x.skipped != h.plans && x.gate.lets(x, h.plans, now) }
	hot := func(x *lane) bool { return x.hot && lets(x) }
	out, slots := h.addSlots(nil, hot, min(most, maxClaim))
	if all {
		cold := func(x *lane) bool { return !x.hot && lets(x) }
		out, _ = h.addSlots(out, cold, min(most, maxClaim-slots))
	}
	return out
}

// addSlots adds up to most slots of the lanes that are wanted, and tells how many.
func (h *hub) addSlots(out []laneSlots, wanted func(*lane) bool, most int) (_ []laneSlots, slots int) {
	var (
		open  []*handler
		last  *handler
		lanes = map[*lane]int{}
	)
	for i := range h.ring {
		x := h.ring[(h.ringAt+i)%len(h.ring)]
		if len(x.sessions) > 0 && slices.ContainsFunc(x.lanes, wanted) {
			open = append(open, x)
			if len(open) == maxLanes {
				break
			}
		}
	}
	// Room for each of them, whoever has work.
	most = min(max(most, 4*len(open)), maxClaim)
	for slots < most && len(open) > 0 {
		for i := 0; i < len(open) && slots < most; {
			x := open[i]
			// A lane that is picked has had its turn, so there must be somebody to give it to.
			var l *lane
			if x.hasRoom() {
				l = x.pick(wanted)
			}
			if l == nil {
				open = slices.Delete(open, i, i+1)
				continue
			}
			s := x.turn(l.gate)
			if s == nil {
				l.skipped = h.plans // who has room is barred from its circuit
				continue
			}
			l.gate.take(l, h.plans)
			at, ok := lanes[l]
			if !ok {
				at = len(out)
				lanes[l] = at
				out = append(out, laneSlots{lane: l})
			}
			out[at].sessions = append(out[at].sessions, s)
			s.reserve(x.name)
			last = x
			slots++
			i++
		}
	}
	if last != nil {
		// Whoever had the last slot has the last turn next time.
		h.ringAt = (slices.Index(h.ring, last) + 1) % len(h.ring)
	}
	return out, slots
}

func (x *handler) hasRoom() bool {
	for i := range x.sessions {
		if x.sessions[(x.next+i)%len(x.sessions)].room(x.name) > 0 {
			return true
		}
	}
	return false
}

// turn gives the next session that has room for the handler and is not barred from the circuit.
func (x *handler) turn(g *gate) *session {
	for range x.sessions {
		s := x.sessions[x.next%len(x.sessions)]
		x.next++
		if s.room(x.name) > 0 && !g.bars(s, time.Now()) {
			return s
		}
	}
	return nil
}

// pick chooses among a handler's lanes by smooth weighted round-robin; nil when none is wanted any more.
func (x *handler) pick(ready func(*lane) bool) *lane {
	var best *lane
	total := 0
	for _, l := range x.lanes {
		if !ready(l) {
			continue
		}
		w := weights[l.Priority]
		l.credit += w
		total += w
		if best == nil || l.credit > best.credit {
			best = l
		}
	}
	if best != nil {
		best.credit -= total
	}
	return best
}

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
	h.release(f, flushed.Grants, flushed.Gates)
	h.distribute(f, flushed.Grants)
	flushed.Change.Wake = f.unmet(flushed.Change.Wake, flushed.Grants)
	// Wakes before answers: a caller that was answered finds its step's children on their way.
	// The gates were read after all of it: this hub need not look again, others may have to.
	told := worthTelling(flushed.Change.Circuits, flushed.Gates, len(reports))
	flushed.Change.Circuits = nil
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
	probes, err := h.e.store.ProbeLanes(ctx, h.id, h.lookInto([]string{x.Handler}))
	if err == nil {
		h.probed(probes)
	}
}

// distribute hands grants to their sessions' streams and polls. What cannot be delivered goes back at once.
func (h *hub) distribute(f *flush, grants []store.Grant) {
	if len(grants) == 0 {
		return
	}
	byID := map[int32]*session{}
	for _, s := range f.slots {
		byID[s.id] = s
	}
	for i := range grants {
		h.e.complete(&grants[i])
	}
	var back []store.HeldLease
	h.mu.Lock()
	for _, g := range grants {
		s := byID[g.SessionID]
		if h.sessions[s.id] != s {
			s.unreserve(g.Step.Handler)
			back = append(back, heldLease(g.Step))
			continue
		}
		s.hold(g.Step.Token.Nonce, g.Step.Handler)
		if !s.deliver(g.Step) {
			s.forget(g.Step.Token.Nonce)
			back = append(back, heldLease(g.Step))
		}
	}
	// A poll returns with all that one claim brought it.
	for _, s := range byID {
		for p := range s.polls {
			p.finishWithSteps()
		}
	}
	h.mu.Unlock()
	if len(back) > 0 {
		h.e.giveBack(h.id, back, task.Undelivered)
	}
}

// deliver needs the hub's mutex.
func (s *session) deliver(r *task.ReadyStep) bool {
	for p := range s.polls {
		if p.give(r) {
			return true
		}
	}
	if s.newest == nil {
		return false
	}
	s.newest.push(Frame{Step: r})
	return true
}

// maxInline bounds the parents' results that ride along with a step, in bytes.
const maxInline = 1 << 20

// complete fills in what the lane and namespace say of a granted step, and keeps its dependencies' results in bounds.
func (e *Engine) complete(g *store.Grant) {
	r := g.Step
	if l, err := e.lane(e.background, g.LaneID); err == nil {
		r.Handler, r.Circuit = l.Handler, l.Circuit
		r.Namespace = e.namespaceName(l.NamespaceID)
	}
	if g.Parents > store.MaxInlineParents {
		e.inlineWide(r)
	}
	size := 0
	for i := 0; i < len(r.Dependencies); {
		d := r.Dependencies[i]
		if size += len(d.Name) + len(d.Results); size > maxInline {
			r.Omitted = append(r.Omitted, d.Name)
			r.Dependencies = slices.Delete(r.Dependencies, i, i+1)
			size -= len(d.Name) + len(d.Results)
			continue
		}
		i++
	}
}

// inlineWide reads the results of a wide join, page by page, until they fill the frame; the rest is named only.
func (e *Engine) inlineWide(r *task.ReadyStep) {
	ctx, cancel := context.WithTimeout(e.background, flushTimeout)
	defer cancel()
	size := 0
	for after := 0; ; {
		page, err := e.store.DependencyResults(ctx, r.Token.Step, after, 500)
		if err != nil || len(page) == 0 {
			return // what is missing is read by GetDependencyResults
		}
		for _, p := range page {
			after = p.StepNo
			if size += len(p.Name) + len(p.Results); size > maxInline {
				r.Omitted = append(r.Omitted, p.Name)
				continue
			}
			r.Dependencies = append(r.Dependencies, task.DependencyResult{Name: p.Name, Results: p.Results})
		}
	}
}
