package store_test

import "time"

// verdict is what a report comes to.
type verdict string

const (
	accepted verdict = "accepted"
	repeated verdict = "already recorded"
	conflict verdict = "RESULT_CONFLICT"
	lost     verdict = "LEASE_LOST"
)

// report says what a report under a dispatch's token comes to, and does it.
func (m *model) report(d *dispatch, o modelOutcome) verdict {
	s := d.step
	switch {
	case s.task.purged:
		return lost
	case s.lease != nil && s.lease.dispatch == d:
		m.conclude(s, o)
		return accepted
	case d.digest == o.digest:
		return repeated
	case d.digest != "":
		return conflict
	case s.welcome == d:
		// It came late, and nobody was granted the step since: as if it had come in time. The run's own start is forgotten.
		if s.place == isParked {
			m.reopen(s.task)
		}
		s.lease, s.welcome = &modelLease{dispatch: d, granted: m.now}, nil
		if d.lost {
			d.lost = false
			s.lost--
		}
		s.parkReason, s.parkCode = "", ""
		m.conclude(s, o)
		return accepted
	}
	if d.late == nil {
		d.late = &lateEvidence{outcome: o.kind}
	}
	d.late.reports++
	return lost
}

// reopen lets a task go on, under its deadline.
func (m *model) reopen(t *modelTask) {
	if t.noted == "error" {
		t.noted = ""
	}
	if !t.deadline.IsZero() {
		m.deadlines[modelDeadline{t.deadline, t, 0}] = true
	}
}

// mayOperate says why an operator may not act on a step; empty: it is in error.
func (m *model) mayOperate(s *modelStep) string {
	switch {
	case s.task.purged:
		return "STEP_NOT_FOUND"
	case s.task.noted == "cancelled":
		return "TASK_FINISHED"
	case s.place == isEnded:
		return "STEP_FINISHED"
	case s.state() == "error":
		return ""
	}
	return "STEP_NOT_IN_ERROR"
}

// take takes a step from its place for an operator's act, which re-opens its task.
func (m *model) take(s *modelStep) {
	m.reopen(s.task)
	s.events++
	s.welcome = nil
	s.started = s.started || s.failures > 0
	s.parkReason, s.parkCode = "", ""
}

func (m *model) retry(s *modelStep, wait time.Duration) {
	m.take(s)
	s.attempts, s.failures, s.lost, s.epoch = 0, 0, 0, s.epoch+1
	s.failure, s.firstStart, s.free = nil, time.Time{}, map[string]int{}
	if wait > 0 {
		m.put(s, isWaiting, m.now.Add(wait))
	} else {
		m.put(s, isReady, m.now)
	}
}

// endByOperator resolves or completes a step.
func (m *model) endByOperator(s *modelStep, how, results string) {
	m.take(s)
	s.results = results
	m.end(s, how)
}

// cancel ends a task; it says why not, and how many steps and leases that was the end of.
func (m *model) cancel(t *modelTask) (refused string, steps, leases int) {
	switch {
	case t.purged:
		return "TASK_NOT_FOUND", 0, 0
	case t.noted == "complete":
		return "TASK_FINISHED", 0, 0
	case t.noted == "cancelled":
		return "", 0, 0
	}
	for _, s := range t.steps {
		if s.place == isEnded {
			continue
		}
		steps++
		if s.lease != nil {
			leases++
			s.lastStart = s.lease.confirmed
		}
		s.lease, s.welcome, s.endedBy = nil, nil, nil
		s.events++
		s.place, s.ending, s.endedAt = isEnded, "cancelled", m.now
	}
	t.noted, t.mayEnd = "cancelled", false
	delete(m.deadlines, modelDeadline{t.deadline, t, 0})
	return "", steps, leases
}

// canRun tells whether a step of the task can still run without an operator.
func (t *modelTask) canRun() bool {
	for _, s := range t.steps {
		if s.place == isReady || s.place == isWaiting || s.place == isLeased {
			return true
		}
	}
	return false
}

func (t *modelTask) anyParked() bool {
	for _, s := range t.steps {
		if s.place == isParked {
			return true
		}
	}
	return false
}

// settle notes a task's end in error, if it has come.
func (m *model) settle(t *modelTask) {
	if !t.purged && t.noted == "" && t.anyParked() && !t.canRun() {
		t.noted = "error"
	}
	t.mayEnd = false
}

// purge says why a task cannot be forgotten, or forgets it.
func (m *model) purge(t *modelTask) (refused string) {
	switch {
	case t.purged:
		return "TASK_NOT_FOUND"
	case t.noted == "":
		return "TASK_NOT_FINISHED"
	}
	t.purged = true
	for d := range m.deadlines {
		if d.task == t {
			delete(m.deadlines, d)
		}
	}
	return ""
}

// overdue lists the deadlines that have passed.
func (m *model) overdue() []modelDeadline {
	var due []modelDeadline
	for d := range m.deadlines {
		if !m.now.Before(d.due) {
			due = append(due, d)
		}
	}
	return due
}

// under tells whether a deadline is about a step, and has passed for it.
func (m *model) under(d modelDeadline, s *modelStep) bool {
	if s.task != d.task {
		return false
	}
	return d.no == 0 || d.no == s.no && !s.firstStart.IsZero() && !m.now.Before(s.firstStart.Add(s.policy.maxElapsed))
}

// enforce parks what still waits under a deadline. Leases end by themselves; until they have, the deadline stays.
func (m *model) enforce(d modelDeadline) (parked int) {
	running := false
	for _, s := range d.task.steps {
		switch {
		case s.place == isLeased && (d.no == 0 || d.no == s.no):
			running = true
		case (s.place == isReady || s.place == isWaiting) && m.under(d, s):
			s.events++
			s.welcome = nil
			m.park(s, "deadline_exceeded", "DEADLINE_EXCEEDED")
			parked++
		}
	}
	if !running {
		delete(m.deadlines, d)
	}
	return parked
}
