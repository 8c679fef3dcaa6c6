package registration

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// backoffs are the least delays after the first, second, third … failure without a hint: the contract's defaults, written
// down here as a table of their own, so that what is audited does not audit itself.
var backoffs = []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second}

// clockGrain forgives what two readings of one clock may differ by: a service reads it when it writes its answer, Postgres
// when it records the report of that answer, at a grain of one microsecond.
const clockGrain = 2 * time.Microsecond

// Finding is something that must not happen, seen by a service.
type Finding struct {
	// Rule is what was broken, in two words.
	Rule string
	// What happened.
	What string
}

// The rules that Audit looks after.
const (
	RuleEarly     = "called early"
	RuleOrder     = "out of order"
	RulePermanent = "called after a refusal"
	RuleTwice     = "done twice"
	RuleLimit     = "over the limit"
)

// Audited is what a look at the services' memory gave.
type Audited struct {
	Findings []Finding
	// Calls by HTTP status; 0 stands for those that were not answered.
	Calls map[int]int
	// Waits is how many retries were due at a known instant and were compared with it.
	Waits int
	// Least is by how much the closest of them kept it.
	Least time.Duration
	// Repeats is how many calls found their work done: it had been done for a run whose end was never recorded.
	Repeats int
}

// Audit decides from the services' memory alone, on their own clock:
//
//   - no retry came before its Retry-After, or before its backoff where there was none
//   - no service was called for a user before the services that come first had done their work
//   - no run followed one that was refused for good, and no step had more runs than its limit
//   - no work was done twice for one user
//
// A run that was killed may be run again at once under the same attempt, having told nobody what it was answered. So what
// counts is the last call of each attempt.
func Audit(calls []Call) Audited {
	audited := Audited{Calls: make(map[int]int)}
	byStep := make(map[place][]Call)
	served := make(map[place]time.Time)
	keys := make(map[place]string)
	for _, call := range calls {
		audited.Calls[call.Answer.Status]++
		if call.Repeated {
			audited.Repeats++
		}
		at := place{call.Service, call.User}
		byStep[at] = append(byStep[at], call)
		if call.Answer.Status == created.Status && !call.Repeated {
			if before, twice := keys[at]; twice {
				audited.find(RuleTwice, call, "done under the keys %q and %q", before, call.IdempotencyKey)
			}
			keys[at], served[at] = call.IdempotencyKey, call.EndedAt
		}
	}
	for _, step := range Steps {
		for at, calls := range byStep {
			if at.service != step.Service {
				continue
			}
			for _, parent := range step.Parents {
				audited.order(calls[0], served, parent)
			}
			slices.SortFunc(calls, func(a, b Call) int { return cmp.Compare(a.Dispatch, b.Dispatch) })
			audited.step(step, calls)
		}
	}
	slices.SortFunc(audited.Findings, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.What, b.What)) })
	return audited
}

func (a *Audited) find(rule string, call Call, format string, args ...any) {
	a.Findings = append(a.Findings, Finding{Rule: rule, What: fmt.Sprintf("%s, user %d, attempt %d, dispatch %d: %s",
		call.Service, call.User, call.Attempt, call.Dispatch, fmt.Sprintf(format, args...))})
}

func (a *Audited) order(first Call, served map[place]time.Time, parent string) {
	for _, step := range Steps {
		if step.Name != parent {
			continue
		}
		done, ok := served[place{step.Service, first.User}]
		if !ok || first.BeganAt.Before(done) {
			a.find(RuleOrder, first, "%s had not done its work", step.Service)
		}
	}
}

// step looks at the calls of one step, in the order of their dispatches.
func (a *Audited) step(step Step, calls []Call) {
	for i, call := range calls {
		if call.Attempt > step.RetryLimit {
			a.find(RuleLimit, call, "the limit is %d", step.RetryLimit)
		}
		if i == 0 || call.Attempt == calls[i-1].Attempt {
			continue
		}
		before := calls[i-1]
		switch before.Answer.Status {
		case 400, 422:
			a.find(RulePermanent, call, "attempt %d was answered %d", before.Attempt, before.Answer.Status)
			continue
		}
		due := dueAfter(before)
		slack := call.BeganAt.Sub(due)
		if slack < -clockGrain {
			a.find(RuleEarly, call, "%s early", -slack)
		}
		if a.Waits == 0 || slack < a.Least {
			a.Least = slack
		}
		a.Waits++
	}
}

// dueAfter is the earliest next call that a failed one allows.
func dueAfter(call Call) time.Time {
	if !call.NotBefore.IsZero() {
		return call.NotBefore
	}
	failedAt := call.EndedAt
	if call.Answer.Status == 0 {
		// Whoever gave up, the worker or the server, did so before the service noticed.
		failedAt = call.BeganAt
	}
	return failedAt.Add(backoffs[min(call.Attempt, len(backoffs))-1])
}
