package registration

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Answer is what a service makes of one call.
type Answer struct {
	// Status is the HTTP status. 0: no answer at all, the call hangs until the caller gives up.
	Status int
	// RetryAfter is how long the caller is asked to wait. 0: no Retry-After header.
	RetryAfter time.Duration
	// AsDate gives Retry-After as an HTTP date, which is good to the second, instead of seconds.
	AsDate bool
}

// Plan is what a service answers to a user's calls, in order: Answers first, and from then on After.
type Plan struct {
	Answers []Answer
	After   Answer
	// Latency is how long each answer takes.
	Latency time.Duration
}

// Call is the answer to the n-th call, from 0.
func (p Plan) Call(n int) Answer {
	if n < len(p.Answers) {
		return p.Answers[n]
	}
	return p.After
}

var (
	created     = Answer{Status: 201}
	unavailable = Answer{Status: 503}
)

// steadyLatency is how long a service without a plan takes.
const steadyLatency = 25 * time.Millisecond

// behaviour is a kind of plan, and how many users in a thousand meet it at one service.
type behaviour struct {
	share int
	plan  func(*rand.Rand) Plan
}

// passing is a trouble that goes away.
func passing(share int, answers ...Answer) behaviour {
	return behaviour{share, func(*rand.Rand) Plan { return Plan{Answers: answers, After: created} }}
}

// lasting is a trouble that stays.
func lasting(share int, answer Answer) behaviour {
	return behaviour{share, func(*rand.Rand) Plan { return Plan{After: answer} }}
}

// behaviours are what the services are up to. A trouble that passes does so after two failures at the latest, because the step
// with the fewest attempts has three. Users that meet none of these are served at once.
var behaviours = []behaviour{
	passing(60, Answer{Status: 429, RetryAfter: 1 * time.Second}),
	passing(40, Answer{Status: 429, RetryAfter: 4 * time.Second}),
	passing(40, Answer{Status: 429, RetryAfter: 3 * time.Second, AsDate: true}),
	passing(40, Answer{Status: 503, RetryAfter: 5 * time.Second}),
	passing(40, Answer{Status: 503}, Answer{Status: 503}),
	passing(50, Answer{Status: 500}),
	passing(20, Answer{Status: 500}, Answer{Status: 429, RetryAfter: 2 * time.Second}),
	passing(30, Answer{}),
	lasting(15, Answer{Status: 400}),
	lasting(25, Answer{Status: 422}),
	lasting(10, Answer{Status: 503}),
}

// PlanFor is the plan of one service for one user. It depends on its arguments alone.
func PlanFor(seed uint64, service string, user int64) Plan {
	name := fnv.New64a()
	_, _ = name.Write([]byte(service))                             // never fails
	draw := rand.New(rand.NewPCG(seed^name.Sum64(), uint64(user))) //nolint:gosec // A plan is to be foreseen.
	latency := 50*time.Millisecond + time.Duration(draw.Int64N(int64(350*time.Millisecond)))
	plan := Plan{After: created}
	for pick, place := draw.IntN(1000), 0; place < len(behaviours); place++ {
		if pick -= behaviours[place].share; pick < 0 {
			plan = behaviours[place].plan(draw)
			break
		}
	}
	plan.Latency = latency
	return plan
}

// Fate is what becomes of a step under its plan, if nothing is lost on the way.
type Fate string

// The fates.
const (
	Completes Fate = "complete"
	// Permanent: the service refuses, and the first run is the last.
	Permanent Fate = "permanent"
	// Exhausted: the service fails until no attempt is left.
	Exhausted Fate = "exhausted"
	// Blocked: a step before it fails for good, so it never runs.
	Blocked Fate = "blocked"
)

// Fates foretells all steps of a user.
func Fates(seed uint64, user int64) map[string]Fate {
	fates := make(map[string]Fate, len(Steps))
	for _, step := range Steps {
		fates[step.Name] = fate(seed, user, step, fates)
	}
	return fates
}

func fate(seed uint64, user int64, step Step, before map[string]Fate) Fate {
	for _, parent := range step.Parents {
		if before[parent] != Completes {
			return Blocked
		}
	}
	plan := PlanFor(seed, step.Service, user)
	for call := range step.RetryLimit {
		switch plan.Call(call).Status {
		case 201:
			return Completes
		case 400, 422:
			return Permanent
		}
	}
	return Exhausted
}
