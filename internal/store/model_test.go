package store_test

import (
	"slices"
	"time"
)

// The model is the specification written a second time, as plainly as can be: a task is a slice of steps, a verb is a
// loop, and the delays are looked up in tables written by hand. It imports nothing of the project, so that nothing it
// says can be copied from what it is held against.

// curve is a backoff policy and the delays it must come to: after the first failure, the second, … the last one for
// every further failure.
type curve struct {
	initial    *time.Duration
	multiplier *float64
	maximum    *time.Duration
	delays     []time.Duration
}

func ptr[T any](v T) *T { return &v }

const (
	ms  = time.Millisecond
	sec = time.Second
)

var curves = []curve{
	{delays: []time.Duration{2 * sec, 4 * sec, 8 * sec, 16 * sec, 30 * sec}},
	{initial: ptr(sec), multiplier: ptr(3.0), maximum: ptr(20 * sec), delays: []time.Duration{sec, 3 * sec, 9 * sec, 20 * sec}},
	{initial: ptr(500 * ms), multiplier: ptr(1.0), delays: []time.Duration{500 * ms}},
	{initial: ptr(10 * sec), maximum: ptr(5 * sec), delays: []time.Duration{5 * sec}},
	{initial: ptr(100 * ms), multiplier: ptr(1.5), maximum: ptr(sec), delays: []time.Duration{
		100 * ms, 150 * ms, 225 * ms, 337_500 * time.Microsecond, 506_250 * time.Microsecond, 759_375 * time.Microsecond, sec,
	}},
	{initial: ptr(time.Duration(0)), delays: []time.Duration{0}},
}

func (c *curve) delay(failures int) time.Duration { return c.delays[min(failures, len(c.delays))-1] }

type modelPolicy struct {
	limit         int
	retryable     bool
	curve         int // of curves
	jitter        float64
	maxRetryAfter time.Duration
	lease         time.Duration // 0: by the rule
	runTimeout    time.Duration // 0: none
	maxElapsed    time.Duration // 0: none
	maxLost       int
	finalCodes    []string
}

type place string

const (
	isBlocked place = "blocked" // its parents have not all ended well
	isReady   place = "ready"
	isWaiting place = "backoff" // until due
	isLeased  place = "lease"
	isParked  place = "parked" // failed for good
	isEnded   place = "step_end"
)

type modelTask struct {
	id        int64
	key       string
	digest    string
	steps     []*modelStep
	notBefore time.Time // zero: none
	deadline  time.Time // zero: none
	noted     string    // the recorded end: complete, error, cancelled; empty: none
	purged    bool
	// mayEnd: a verb said that the task may have come to its end in error, and nobody has looked yet.
	mayEnd bool
}

type modelStep struct {
	task    *modelTask
	no      int
	name    string
	lane    int32
	handler string
	parents []int
	policy  modelPolicy

	place      place
	ending     string // complete, resolved_manually, cancelled
	attempts   int
	failures   int
	dispatches int
	lost       int
	epoch      int
	events     int
	free       map[string]int // undelivered, released, skipped: how often in a row
	started    bool
	runnableAt time.Time // when it became, or becomes, runnable
	firstStart time.Time // of its first dispatch since the last reset; zero: none
	welcome    *dispatch // came back without a result, and its late report is still taken
	lease      *modelLease
	failure    *modelFailure // the last since the reset
	parkReason string
	parkCode   string
	results    string
	checkpoint string
	endedBy    *dispatch // nil: an operator
	endedAt    time.Time
	lastStart  time.Time // of its ending; zero: it did not end by a run
}

type modelLease struct {
	*dispatch
	from       place // where the step stood
	session    int32
	granted    time.Time
	confirmed  time.Time // zero: not yet
	until      time.Time
	duration   time.Duration
	runTimeout time.Duration
	stop       time.Time // zero: never
}

// dispatch is one granted lease, for ever.
type dispatch struct {
	step   *modelStep
	number int
	lost   bool   // counted as lost
	digest string // of the outcome its worker reported and that was recorded; empty: none
	late   *lateEvidence
	fail   *modelFailure
	told   told // the answer to its report
}

type lateEvidence struct {
	outcome string
	reports int
}

type modelFailure struct {
	outcome   string
	dispatch  int
	attempt   int // attempts after it
	failures  int // failures after it
	at        time.Time
	start     time.Time
	code      string
	base      time.Duration
	jitter    time.Duration // drawn by the store; read from its row
	next      time.Time     // zero: parked
	source    string        // empty: parked
	clamped   bool
	requested *time.Duration
}

// outcome is what a worker says.
type modelOutcome struct {
	kind    string // success, retryable_failure, permanent_failure
	results string
	code    string
	skip    bool
	source  string // empty: no hint
	after   *time.Duration
	at      *time.Time
	digest  string
}

type model struct {
	pauses   map[string]modelPause // by handler; those whose time is up stay
	revision int                   // how often pauses changed
	fences   map[int32]int         // by session: the revision of the last pause, or when it was opened

	now       time.Time
	tasks     []*modelTask
	deadlines map[modelDeadline]bool
	// woken are the lanes in which a step became runnable or got a time at which it will.
	woken map[int32]bool
}

type modelDeadline struct {
	due  time.Time
	task *modelTask
	no   int // 0: the whole task
}

func (m *model) steps() []*modelStep {
	var all []*modelStep
	for _, t := range m.tasks {
		all = append(all, t.steps...)
	}
	return all
}

func (m *model) find(where func(*modelStep) bool) []*modelStep {
	return slices.DeleteFunc(m.steps(), func(s *modelStep) bool { return s.task.purged || !where(s) })
}

// put makes a step runnable at an instant, in the table that says so.
func (m *model) put(s *modelStep, where place, at time.Time) {
	s.place, s.runnableAt = where, at
	m.woken[s.lane] = true
}

func (s *modelStep) endedWell() bool {
	return s.place == isEnded && s.ending != "cancelled"
}

func (s *modelStep) parentsDone() int {
	n := 0
	for _, p := range s.parents {
		if s.task.steps[p-1].endedWell() {
			n++
		}
	}
	return n
}

// runnable tells whether it could run now, but for a pause.
func (m *model) runnable(s *modelStep) bool {
	return s.place == isReady || s.place == isWaiting && !m.now.Before(s.runnableAt)
}

func (s *modelStep) state() string {
	switch {
	case s.place == isEnded:
		return s.ending
	case s.place == isLeased:
		return "in_progress"
	case s.place == isParked, s.failures > 0:
		return "error"
	}
	return "pending"
}

// submit stores a task. Its id is filled in by the caller.
func (m *model) submit(t *modelTask) {
	for _, s := range t.steps {
		s.task, s.epoch, s.place, s.free = t, 1, isBlocked, map[string]int{}
		if len(s.parents) > 0 {
			continue
		}
		if t.notBefore.After(m.now) {
			m.put(s, isWaiting, t.notBefore)
		} else {
			m.put(s, isReady, m.now)
		}
	}
	if !t.deadline.IsZero() {
		m.deadlines[modelDeadline{t.deadline, t, 0}] = true
	}
	m.tasks = append(m.tasks, t)
}

// grant leases a step.
func (m *model) grant(s *modelStep, session int32, beats bool, delivery time.Duration) *dispatch {
	s.dispatches++
	s.events++
	d := &dispatch{step: s, number: s.dispatches}
	l := &modelLease{
		dispatch: d, from: s.place, session: session, granted: m.now, until: m.now.Add(delivery), runTimeout: s.policy.runTimeout,
	}
	switch {
	case s.policy.lease > 0:
		l.duration = s.policy.lease
	case !beats && s.policy.runTimeout > 25*sec:
		l.duration = s.policy.runTimeout + 5*sec
	default:
		l.duration = 30 * sec
	}
	if s.policy.maxElapsed > 0 {
		if s.firstStart.IsZero() {
			s.firstStart = m.now
		}
		l.stop = s.firstStart.Add(s.policy.maxElapsed)
	}
	if t := s.task.deadline; !t.IsZero() && (l.stop.IsZero() || t.Before(l.stop)) {
		l.stop = t
	}
	s.lease, s.place, s.welcome = l, isLeased, nil
	return d
}

// heartbeat extends a lease.
func (m *model) heartbeat(s *modelStep, checkpoint string) {
	l := s.lease
	if l.confirmed.IsZero() {
		l.confirmed = m.now
		s.events++
	}
	l.until, s.started, s.free["undelivered"] = m.now.Add(l.duration), true, 0
	if checkpoint != "" {
		s.checkpoint = checkpoint
	}
}

// expiry is what time has made of a lease; empty: nothing yet.
func (m *model) expiry(l *modelLease) string {
	past := func(t time.Time) bool { return !t.IsZero() && !m.now.Before(t) }
	switch {
	case past(l.stop):
		return "deadline_exceeded"
	case !l.confirmed.IsZero() && l.runTimeout > 0 && past(l.confirmed.Add(l.runTimeout)):
		return "timed_out"
	case past(l.until) && l.confirmed.IsZero():
		return "undelivered"
	case past(l.until):
		return "lost_lease"
	}
	return ""
}

// began is when the dispatch's run began, as far as anybody knows.
func (l *modelLease) began() time.Time {
	if l.confirmed.IsZero() {
		return l.granted
	}
	return l.confirmed
}

// conclude ends a leased step's run by an outcome.
func (m *model) conclude(s *modelStep, o modelOutcome) {
	l := s.lease
	s.lease, s.started = nil, true
	s.events++
	l.digest = o.digest
	if o.kind == "success" {
		s.attempts++
		s.results, s.endedBy, s.lastStart = o.results, l.dispatch, l.began()
		m.end(s, "complete")
		return
	}
	counted := !o.skip || s.free["skipped"] >= 100
	s.free["undelivered"], s.free["released"] = 0, 0
	s.failures++
	if counted {
		s.attempts++
		s.free["skipped"] = 0
	} else {
		s.free["skipped"]++
	}
	f := &modelFailure{
		outcome: o.kind, dispatch: l.number, attempt: s.attempts, failures: s.failures, at: m.now, start: l.began(), code: o.code,
	}
	s.failure, l.fail = f, f
	switch p := s.policy; {
	case o.kind == "deadline_exceeded":
		m.park(s, "deadline_exceeded", o.code)
		return
	case o.kind == "permanent_failure", !p.retryable, o.code != "" && slices.Contains(p.finalCodes, o.code):
		m.park(s, "permanent", cmpOr(o.code, "FAILED"))
		return
	case s.attempts >= p.limit:
		m.park(s, "exhausted", cmpOr(o.code, "RETRIES_EXHAUSTED"))
		return
	}
	asked := o.after
	if o.at != nil {
		asked = ptr(o.at.Sub(m.now))
	}
	f.source = cmpOr(o.source, "backoff")
	if asked == nil {
		f.base = curves[s.policy.curve].delay(s.failures)
	} else {
		f.clamped = *asked > s.policy.maxRetryAfter || *asked < 0
		f.base = max(min(*asked, s.policy.maxRetryAfter), 0)
		f.requested = ptr(f.base)
	}
	f.next = m.now.Add(f.base) // and jitter, which learnJitter adds
	m.put(s, isWaiting, f.next)
	m.limitElapsed(s)
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// learnJitter takes over what the store drew.
func (f *modelFailure) learnJitter(s *modelStep, jitter time.Duration) {
	f.jitter = jitter
	f.next = f.at.Add(f.base + jitter)
	s.runnableAt = f.next
}

func (m *model) park(s *modelStep, reason, code string) {
	s.place, s.parkReason, s.parkCode = isParked, reason, code
	s.free = map[string]int{}
}

// end ends a step and wakes those of its children that it was the last parent of.
func (m *model) end(s *modelStep, how string) {
	s.place, s.ending, s.endedAt = isEnded, how, m.now
	for _, child := range s.task.steps {
		if child.place == isBlocked && slices.Contains(child.parents, s.no) && child.parentsDone() == len(child.parents) {
			m.put(child, isReady, m.now)
		}
	}
	if !slices.ContainsFunc(s.task.steps, func(x *modelStep) bool { return !x.endedWell() }) {
		s.task.noted = "complete"
	}
}

// comeBack ends a run without a result.
func (m *model) comeBack(s *modelStep, outcome string, delay time.Duration) {
	l := s.lease
	s.events++
	if outcome == "undelivered" && s.free["undelivered"] >= 5 || outcome == "released" && s.free["released"] >= 100 {
		outcome = "lost_lease"
	}
	switch outcome {
	case "undelivered":
		s.free["undelivered"]++
		s.free["released"] = 0
	case "released":
		s.free["released"]++
		s.free["undelivered"] = 0
	default:
		s.free["released"], s.free["undelivered"] = 0, 0
		s.lost++
		l.lost = true
	}
	s.lease, s.welcome = nil, l.dispatch
	s.started = s.started || !l.confirmed.IsZero()
	if outcome == "lost_lease" && s.lost >= s.policy.maxLost {
		s.started = true
		skipped := s.free["skipped"]
		m.park(s, "lease_expired", "LEASE_EXPIRED")
		s.free["skipped"] = skipped
		return
	}
	if delay > 0 {
		m.put(s, isWaiting, m.now.Add(delay))
	} else {
		m.put(s, l.from, s.runnableAt)
	}
	m.limitElapsed(s)
}

// limitElapsed notes when a step that waits again will have been at it for too long.
func (m *model) limitElapsed(s *modelStep) {
	if s.policy.maxElapsed > 0 && !s.firstStart.IsZero() {
		m.deadlines[modelDeadline{s.firstStart.Add(s.policy.maxElapsed), s.task, s.no}] = true
	}
}
