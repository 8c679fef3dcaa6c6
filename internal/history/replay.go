package history

import (
	"fmt"
	"time"
)

// event is one thing that happened to a step, as the history tells it: the counters are those after it.
type event struct {
	TaskID      int64
	StepNo      int
	EventNo     int
	RecordedAt  time.Time
	Kind        string
	Outcome     string
	Dispatch    int
	Epoch       int
	SessionID   *int32
	Attempts    int
	Failures    int
	LostLeases  int
	State       string
	DelaySource string
	BaseDelay   *int64
	Jitter      *int64
	NextRetryAt *time.Time
	ErrorCode   string
}

// place is where a step stands: the live tables, the endings, or nowhere yet.
type place string

// The places of a step. A blocked one has no row at all.
const (
	blocked          place = ""
	ready            place = "ready"
	backoff          place = "backoff"
	lease            place = "lease"
	parked           place = "parked"
	complete         place = "complete"
	resolvedManually place = "resolved_manually"
	cancelled        place = "cancelled"
)

func (p place) waits() bool { return p == ready || p == backoff }

func (p place) ended() bool { return p == complete || p == resolvedManually || p == cancelled }

// wakes tells whether a step that ended so lets its children run.
func (p place) wakes() bool { return p == complete || p == resolvedManually }

// failure is the last failed conclusion of one dispatch.
type failure struct {
	event
	failures, lostLeases, attempts int
}

// acceptance is a worker's report that was accepted.
type acceptance struct {
	dispatch int
	outcome  string
	free     bool // it did not count
	owed     bool // it had to count, asked or not
}

// stepModel is what the events of a step, replayed from nothing, make of it.
type stepModel struct {
	policy   policy
	circuit  int32 // 0: none
	isPaused bool  // now
	place    place

	attempts, failures, dispatches, lostLeases int
	epoch, eventNo                             int
	undelivered, released, skipped             int // in a row
	started, confirmed                         bool
	session                                    int32
	dueAt                                      *time.Time
	parkReason                                 string

	lateOpen    bool // the latest dispatch came back without a result: its report would still be accepted
	accepted    []acceptance
	confirmedAt time.Time
	endedAt     time.Time
	dispatched  []time.Time     // by dispatch, from 1
	run         *run            // the latest; nil: none, or behind no circuit
	firstAt     time.Time       // its first dispatch since it was submitted or reset; zero: none
	stops       []stop          // ends by a budget of time
	failed      map[int]failure // by dispatch
}

// replayer is what a replay tells of: counts, violations, and how long each session held a confirmed lease.
type replayer struct {
	r       *Report
	violate func(dispatch int, invariant, format string, args ...any)
	held    func(session int32, from, to time.Time)
	runs    func(circuit int32, r *run)
	// mayBeForgotten tells of a dispatch whether PostgreSQL may have forgotten that it granted it, once or at all.
	mayBeForgotten func(dispatch int, isKnown bool) bool
}

// apply replays one event. What should not have happened is told, and then taken as given.
func (m *stepModel) apply(p *replayer, e *event) {
	if e.EventNo == 0 {
		m.late(p, e)
		return
	}
	if e.EventNo != m.eventNo+1 {
		p.violate(e.Dispatch, "S14", "event %d (%s) follows event %d", e.EventNo, e.Kind, m.eventNo)
	}
	switch e.Kind {
	case "dispatched":
		m.dispatch(p, e)
	case "confirmed":
		m.confirm(p, e)
	case "concluded":
		m.conclude(p, e)
	case "retried":
		m.retry(p, e)
	case "resolved", "completed":
		m.endByHand(p, e)
	case "cancelled":
		m.cancel(p, e)
	case "parked":
		m.park(p, e)
	default:
		p.violate(e.Dispatch, "S14", "a %s is no event of a step", e.Kind)
	}
	m.eventNo = e.EventNo
}

func (m *stepModel) dispatch(p *replayer, e *event) {
	p.r.Dispatches++
	switch {
	case m.place.ended():
		p.violate(e.Dispatch, "S1", "dispatched after the step was %s", m.place)
	case m.place == lease:
		p.violate(e.Dispatch, "S3", "dispatched while dispatch %d still held its lease", m.dispatches)
		m.release(p, e.RecordedAt)
	case m.place == parked && m.parkReason == "permanent":
		p.violate(e.Dispatch, "S12", "dispatched after a permanent failure")
	case m.place == parked:
		p.violate(e.Dispatch, "S5", "dispatched after the step was given up (%s)", m.parkReason)
	}
	if e.Dispatch != m.dispatches+1 {
		p.violate(e.Dispatch, "S3", "follows dispatch %d", m.dispatches)
	}
	if e.Epoch != m.epoch {
		p.violate(e.Dispatch, "S14", "dispatched in epoch %d, the step is in epoch %d", e.Epoch, m.epoch)
	}
	if m.dueAt != nil && e.RecordedAt.Before(*m.dueAt) {
		p.r.Early++
		p.violate(e.Dispatch, "S6", "dispatched %s before it was due", m.dueAt.Sub(e.RecordedAt))
	}
	m.place, m.dispatches, m.session = lease, e.Dispatch, sessionOf(e)
	m.confirmed, m.lateOpen, m.dueAt = false, false, nil
	m.dispatched = append(m.dispatched, e.RecordedAt)
	if m.firstAt.IsZero() {
		m.firstAt = e.RecordedAt
	}
	if m.circuit != 0 {
		m.run = &run{stepID: e.TaskID + int64(e.StepNo), dispatch: e.Dispatch, from: e.RecordedAt}
		p.runs(m.circuit, m.run)
	}
}

func (m *stepModel) confirm(p *replayer, e *event) {
	if m.place != lease || e.Dispatch != m.dispatches || sessionOf(e) != m.session || m.confirmed {
		p.violate(e.Dispatch, "S3", "confirmed while the step is %s with dispatch %d of session %d", m.where(), m.dispatches, m.session)
		return
	}
	m.confirmed, m.started, m.undelivered, m.confirmedAt = true, true, 0, e.RecordedAt
}

// release ends the lease's hold on its session, and on its circuit.
func (m *stepModel) release(p *replayer, at time.Time) {
	if m.place == lease && m.run != nil {
		m.run.to = at
	}
	if m.place == lease && m.confirmed {
		p.held(m.session, m.confirmedAt, at)
	}
}

func (m *stepModel) conclude(p *replayer, e *event) {
	reported := isReported(e.Outcome)
	inTime := m.place == lease && e.Dispatch == m.dispatches && sessionOf(e) == m.session
	late := reported && m.lateOpen && e.Dispatch == m.dispatches && sessionOf(e) == m.session &&
		(m.place.waits() || m.place == parked && m.parkReason == "lease_expired")
	switch {
	case inTime:
		m.release(p, e.RecordedAt)
	case late:
		p.r.LateAccepted++
		if _, lost := m.failed[e.Dispatch]; lost { // what is reported now takes the place of the loss, which then was none
			delete(m.failed, e.Dispatch)
			m.lostLeases--
		}
	case reported:
		p.violate(e.Dispatch, "S4", "a %s was accepted while the step was %s with dispatch %d of session %d", e.Outcome, m.where(), m.dispatches, m.session)
	default:
		p.violate(e.Dispatch, "S3", "concluded as %s while the step was %s with dispatch %d of session %d", e.Outcome, m.where(), m.dispatches, m.session)
	}
	if reported {
		m.accepted = append(m.accepted, acceptance{e.Dispatch, e.Outcome, e.Attempts == m.attempts, m.skipped >= maxSkipped})
	}
	if e.Epoch != m.epoch {
		p.violate(e.Dispatch, "S14", "concluded in epoch %d, the step is in epoch %d", e.Epoch, m.epoch)
	}
	if m.run != nil && m.run.dispatch == e.Dispatch {
		m.run.charged, m.run.lost = e.Attempts > m.attempts, e.Outcome == "lost_lease"
	}
	switch e.Outcome {
	case "success":
		m.succeed(p, e)
	case "retryable_failure", "permanent_failure", "timed_out", "deadline_exceeded":
		m.fail(p, e)
	case "lost_lease", "released", "undelivered":
		m.giveBack(p, e)
	default:
		p.violate(e.Dispatch, "S14", "concluded as %q", e.Outcome)
	}
	if m.attempts > m.policy.retryLimit {
		p.violate(e.Dispatch, "S5", "%d attempts of %d", m.attempts, m.policy.retryLimit)
	}
	if m.lostLeases > m.policy.maxLostLeases {
		p.violate(e.Dispatch, "S5", "%d lost leases of %d", m.lostLeases, m.policy.maxLostLeases)
	}
}

func (m *stepModel) succeed(p *replayer, e *event) {
	p.r.Attempts++
	m.countOverdue(p)
	m.expect(p, e, m.attempts+1, m.failures, m.lostLeases)
	m.place, m.endedAt, m.lateOpen = complete, e.RecordedAt, false
}

func (m *stepModel) fail(p *replayer, e *event) {
	counts := m.attempts + 1
	switch {
	case e.Outcome == "retryable_failure" && e.Attempts == m.attempts: // it asked not to be counted
		counts = m.attempts
		if m.skipped++; m.skipped > maxSkipped {
			p.violate(e.Dispatch, "S5", "%d failures in a row were not counted", m.skipped)
		}
		p.r.Uncounted++
	default:
		m.skipped = 0
		p.r.Attempts++
	}
	if e.Outcome == "deadline_exceeded" {
		m.stops = append(m.stops, stop{e.Dispatch, e.RecordedAt, m.firstAt})
	}
	p.r.Failures++
	m.expect(p, e, counts, m.failures+1, m.lostLeases)
	m.undelivered, m.released, m.started, m.lateOpen = 0, 0, true, false
	m.recordFailure(e)

	reason := m.policy.isFinal(e.Outcome, e.ErrorCode, m.attempts)
	switch {
	case reason != "" && e.State != "parked":
		invariant := "S12"
		if reason == "exhausted" {
			invariant = "S5"
		}
		p.violate(e.Dispatch, invariant, "goes to %s after its last failure (%s)", e.State, reason)
	case reason == "" && e.State != "backoff":
		p.violate(e.Dispatch, "S14", "goes to %s after failure %d, which may be retried", e.State, m.failures)
	}
	if e.State == "parked" {
		m.place, m.parkReason, m.dueAt, m.skipped = parked, reason, nil, 0
		return
	}
	m.place, m.dueAt = backoff, e.NextRetryAt
	m.checkDelay(p, e)
}

func (m *stepModel) recordFailure(e *event) {
	if m.failed == nil {
		m.failed = map[int]failure{}
	}
	m.failed[e.Dispatch] = failure{event: *e, attempts: m.attempts, failures: m.failures, lostLeases: m.lostLeases}
}

func (m *stepModel) checkDelay(p *replayer, e *event) {
	if e.BaseDelay == nil || e.Jitter == nil || e.NextRetryAt == nil {
		p.violate(e.Dispatch, "S6", "waits for a retry without a delay or an instant")
		return
	}
	if wrong := m.policy.checkDelay(e.DelaySource, m.failures, *e.BaseDelay, *e.Jitter); wrong != "" {
		p.violate(e.Dispatch, "S6", "%s", wrong)
	}
	if start := e.NextRetryAt.Add(-micros(*e.BaseDelay + *e.Jitter)); start.After(e.RecordedAt) {
		p.violate(e.Dispatch, "S6", "the delay starts %s after the failure was recorded", start.Sub(e.RecordedAt))
	}
}

func (m *stepModel) giveBack(p *replayer, e *event) {
	lost := m.lostLeases
	undelivered, released := 0, 0
	switch e.Outcome {
	case "undelivered":
		p.r.Undelivered++
		undelivered = m.undelivered + 1
		if m.confirmed || undelivered > maxUndelivered {
			p.violate(e.Dispatch, "S5", "undelivered %d times in a row, confirmed: %v: it is a lost lease", undelivered, m.confirmed)
		}
	case "released":
		p.r.Released++
		if released = m.released + 1; released > maxReleased {
			p.violate(e.Dispatch, "S5", "released %d times in a row: it is a lost lease", released)
		}
	default:
		p.r.LostLeases++
		lost++
		if !m.confirmed && m.undelivered < maxUndelivered && m.released < maxReleased {
			p.violate(e.Dispatch, "S5", "a dispatch that was never confirmed counts as a lost lease")
		}
	}
	m.expect(p, e, m.attempts, m.failures, lost)
	m.undelivered, m.released, m.lateOpen = undelivered, released, true
	if e.Outcome == "lost_lease" {
		m.recordFailure(e)
	}
	poisoned := e.Outcome == "lost_lease" && m.lostLeases >= m.policy.maxLostLeases
	if poisoned != (e.State == "parked") {
		p.violate(e.Dispatch, "S5", "goes to %s with %d lost leases of %d", e.State, m.lostLeases, m.policy.maxLostLeases)
	}
	if e.State == "parked" {
		m.place, m.parkReason, m.dueAt, m.started, m.undelivered, m.released = parked, "lease_expired", nil, true, 0, 0
		return
	}
	m.place, m.dueAt = place(e.State), e.NextRetryAt
}

// expect demands the counters that an event says it leaves behind, and goes on with what it says.
func (m *stepModel) expect(p *replayer, e *event, attempts, failures, lostLeases int) {
	if e.Attempts != attempts || e.Failures != failures || e.LostLeases != lostLeases {
		p.violate(e.Dispatch, "S14", "%s %s leaves %d attempts, %d failures, %d lost leases; replayed: %d, %d, %d", e.Kind, e.Outcome,
			e.Attempts, e.Failures, e.LostLeases, attempts, failures, lostLeases)
	}
	m.attempts, m.failures, m.lostLeases = e.Attempts, e.Failures, e.LostLeases
}

func (m *stepModel) inError() bool { return m.place == parked || m.place.waits() && m.failures > 0 }

func (m *stepModel) retry(p *replayer, e *event) {
	p.r.Retried++
	if !m.inError() {
		p.violate(e.Dispatch, m.movedOn(), "reset while it is %s", m.where())
		m.release(p, e.RecordedAt)
	}
	if e.Epoch != m.epoch+1 {
		p.violate(e.Dispatch, "S14", "the reset begins epoch %d after epoch %d", e.Epoch, m.epoch)
	}
	m.started = m.started || m.failures > 0
	m.expect(p, e, 0, 0, 0)
	m.epoch, m.place, m.dueAt, m.parkReason = e.Epoch, place(e.State), e.NextRetryAt, ""
	m.undelivered, m.released, m.skipped, m.lateOpen, m.firstAt = 0, 0, 0, false, time.Time{}
}

func (m *stepModel) endByHand(p *replayer, e *event) {
	if !m.inError() {
		p.violate(e.Dispatch, m.movedOn(), "%s by hand while it is %s", e.Kind, m.where())
		m.release(p, e.RecordedAt)
	}
	m.expect(p, e, m.attempts, m.failures, m.lostLeases)
	m.place, m.endedAt, m.dueAt, m.lateOpen, m.session = complete, e.RecordedAt, nil, false, 0
	if e.Kind == "resolved" {
		m.place = resolvedManually
	}
}

func (m *stepModel) cancel(p *replayer, e *event) {
	if m.place.ended() {
		p.violate(e.Dispatch, "S4", "cancelled after it was %s", m.place)
	}
	m.release(p, e.RecordedAt)
	m.expect(p, e, m.attempts, m.failures, m.lostLeases)
	if m.place != lease {
		m.session = 0
	}
	m.place, m.endedAt, m.dueAt, m.lateOpen = cancelled, e.RecordedAt, nil, false
}

func (m *stepModel) park(p *replayer, e *event) {
	if m.place != blocked && !m.place.waits() {
		p.violate(e.Dispatch, m.movedOn(), "given up while it is %s", m.where())
	}
	m.expect(p, e, m.attempts, m.failures, m.lostLeases)
	m.stops = append(m.stops, stop{e.Dispatch, e.RecordedAt, m.firstAt})
	m.place, m.parkReason, m.dueAt, m.lateOpen = parked, "deadline_exceeded", nil, false
}

// countOverdue counts a success whose dispatch was granted after a budget of time had passed by the clock.
func (m *stepModel) countOverdue(p *replayer) {
	if len(m.dispatched) == 0 {
		return
	}
	last := m.dispatched[len(m.dispatched)-1]
	if m.policy.deadline != nil && last.After(*m.policy.deadline) {
		p.r.PastDeadline++
	}
	if m.policy.maxElapsed != nil && last.After(m.firstAt.Add(micros(*m.policy.maxElapsed))) {
		p.r.PastElapsed++
	}
}

// late checks a report that came too late. It changes nothing.
func (m *stepModel) late(p *replayer, e *event) {
	p.r.LateReports++
	isKnown := e.Dispatch >= 1 && e.Dispatch <= m.dispatches
	if p.mayBeForgotten(e.Dispatch, isKnown) {
		return
	}
	if !isKnown {
		p.violate(e.Dispatch, "S4", "a late report of a dispatch that was never made")
	}
	for _, accepted := range m.accepted {
		if accepted.dispatch == e.Dispatch {
			p.violate(e.Dispatch, "S4", "a report was taken for late although the dispatch was concluded by one")
		}
	}
}

// movedOn is the invariant that an act breaks which comes too late, or too early.
func (m *stepModel) movedOn() string {
	if m.place.ended() {
		return "S4"
	}
	return "S14"
}

func (m *stepModel) where() string {
	if m.place == blocked {
		return "waiting for its first dispatch"
	}
	return string(m.place)
}

// state is the step's current_state.
func (m *stepModel) state() string {
	switch {
	case m.place.ended():
		return string(m.place)
	case m.place == lease:
		return "in_progress"
	case m.place == parked, m.failures > 0:
		return "error"
	}
	return "pending"
}

func isReported(outcome string) bool {
	return outcome == "success" || outcome == "retryable_failure" || outcome == "permanent_failure"
}

func sessionOf(e *event) int32 {
	if e.SessionID == nil {
		return 0
	}
	return *e.SessionID
}

func (m *stepModel) String() string {
	return fmt.Sprintf("%s: attempts %d, failures %d, dispatches %d, lost leases %d, epoch %d, event %d", m.where(), m.attempts, m.failures,
		m.dispatches, m.lostLeases, m.epoch, m.eventNo)
}
