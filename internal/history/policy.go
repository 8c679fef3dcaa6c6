package history

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// The checker's own idea of a step's policy, in microseconds, the grain of the database. It is written from the contract,
// not from what the server runs: a model that shared a formula with the server would share its mistakes.

const (
	second  = int64(time.Second / time.Microsecond)
	hour    = 3600 * second
	yearMax = 365 * 24 * hour // the greatest delay that a policy can ask for
)

// defaultDelays are the delays of a step without a policy, in seconds, by failure; the last one stays.
var defaultDelays = [...]int64{2, 4, 8, 16, 30}

const (
	defaultInitial       = 2 * second
	defaultMultiplier    = 2.0
	defaultMax           = 30 * second
	defaultJitter        = 0.1
	defaultMaxRetryAfter = 24 * hour

	maxUndelivered = 5   // in a row are free
	maxReleased    = 100 // in a row are free
	maxSkipped     = 100 // in a row do not count
)

// policy is what a step's row says about retries. A nil field means the default.
type policy struct {
	retryLimit    int
	retryable     bool
	maxLostLeases int
	initial       *int64 // all delays in microseconds
	multiplier    *float64
	max           *int64
	jitter        *float64
	maxRetryAfter *int64
	nonRetryable  []string
	maxElapsed    *int64     // from the first dispatch; nil: none
	deadline      *time.Time // the task's; nil: none
}

// isFinal tells why a failure with this outcome and code, as the attempts-th attempt, is the last one. Empty: it is not.
func (p *policy) isFinal(outcome, code string, attempts int) (parkReason string) {
	switch {
	case outcome == "deadline_exceeded":
		return "deadline_exceeded"
	case outcome == "permanent_failure", !p.retryable, code != "" && slices.Contains(p.nonRetryable, code):
		return "permanent"
	case attempts >= p.retryLimit:
		return "exhausted"
	}
	return ""
}

// delay is the delay after the failures-th failure, without jitter.
func (p *policy) delay(failures int) int64 {
	if p.initial == nil && p.multiplier == nil && p.max == nil {
		return defaultDelays[min(failures, len(defaultDelays))-1] * second
	}
	initial, multiplier, most := or(p.initial, defaultInitial), or(p.multiplier, defaultMultiplier), min(or(p.max, defaultMax), yearMax)
	grown := float64(initial) * math.Pow(multiplier, float64(failures-1)) // +Inf at worst
	if grown >= float64(most) {
		return most
	}
	return int64(math.Round(grown))
}

// checkDelay tells what is wrong with the delay of a failure that is to be retried. Empty: nothing.
func (p *policy) checkDelay(source string, failures int, base, jitter int64) string {
	switch source {
	case "backoff", "header_unreadable":
		want := p.delay(failures)
		// One microsecond for the last bit of a power.
		if base < want-1 || base > want+1 {
			return fmt.Sprintf("the delay after failure %d is %s, the policy says %s", failures, micros(base), micros(want))
		}
		share := or(p.jitter, defaultJitter)
		if jitter < 0 || float64(jitter) > share*float64(base)+1 {
			return fmt.Sprintf("the jitter is %s of a delay of %s, at most a share of %v is allowed", micros(jitter), micros(base), share)
		}
	case "retry_after", "retry_at", "header_seconds", "header_date":
		if most := or(p.maxRetryAfter, defaultMaxRetryAfter); base < 0 || base > most {
			return fmt.Sprintf("the delay asked for is %s after clamping, outside of 0 to %s", micros(base), micros(most))
		}
		if jitter != 0 {
			return fmt.Sprintf("a delay that was asked for got a jitter of %s", micros(jitter))
		}
	default:
		return fmt.Sprintf("a delay of %s comes from nowhere (source %q)", micros(base), source)
	}
	return ""
}

func or[T any](value *T, fallback T) T {
	if value != nil {
		return *value
	}
	return fallback
}

func micros(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
