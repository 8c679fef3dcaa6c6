// Package task holds the nouns of Tasker: ids, states, leases, reports, the graph check and the sentinel errors.
// It knows no database and no wire format; every other package speaks in its terms.
//
// A task is one run of a workflow: a graph of steps. A step is dispatched to a worker under a lease; the worker reports
// one outcome under the lease's token. A concluded run that counts towards the step's retry_limit is an attempt.
package task

import (
	"strconv"
	"time"
)

// ID identifies a task: shard << 54 | number << 14. Its low 14 bits are zero, so that a step's id is the task's id plus
// the step's number, and a shard can be told from any id without a look-up.
type ID int64

// StepID identifies a step: its task's ID plus its number in the task.
type StepID int64

const (
	stepBits  = 14
	shardBits = 54
	// MaxSteps is how many steps a task may have.
	MaxSteps = 10_000
	// MaxEdges is how many dependencies a task may have in all.
	MaxEdges = 50_000
	// MaxParents is how many parents a step may have.
	MaxParents = 10_000
	// MaxNumber is how many tasks a shard may ever have: their numbers are below it.
	MaxNumber = 1 << (shardBits - stepBits)
	// MaxShard is the largest shard number.
	MaxShard = 1<<(63-shardBits) - 1
)

// NewID makes the id of task number on shard.
func NewID(shard int, number int64) ID {
	return ID(int64(shard)<<shardBits | number<<stepBits)
}

// Step gives the id of the task's step number no (1 … MaxSteps).
func (id ID) Step(no int) StepID { return StepID(int64(id) + int64(no)) }

// Shard is the shard the task lives in.
func (id ID) Shard() int { return int(int64(id) >> shardBits) }

// Number is the task's number within its shard.
func (id ID) Number() int64 { return int64(id) & (1<<shardBits - 1) >> stepBits }

func (id ID) String() string { return strconv.FormatInt(int64(id), 10) }

// Task is the id of the step's task.
func (id StepID) Task() ID { return ID(int64(id) &^ (1<<stepBits - 1)) }

// No is the step's number in its task.
func (id StepID) No() int { return int(int64(id) & (1<<stepBits - 1)) }

func (id StepID) String() string { return strconv.FormatInt(int64(id), 10) }

// ParseID reads a task id as the contract prints it. Anything else is no task's id: ok is false.
func ParseID(s string) (id ID, ok bool) {
	n, ok := parseDecimal(s)
	return ID(n), ok && n&(1<<stepBits-1) == 0
}

// ParseStepID reads a step id as the contract prints it.
func ParseStepID(s string) (id StepID, ok bool) {
	n, ok := parseDecimal(s)
	no := n & (1<<stepBits - 1)
	return StepID(n), ok && no >= 1 && no <= MaxSteps
}

// parseDecimal takes only the canonical form, so that one id has one spelling.
func parseDecimal(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n > 0 && strconv.FormatInt(n, 10) == s
}

// StepState is a step's current_state.
type StepState string

// The states of a step. What brings a step in and out of each is told in the contract.
const (
	StepPending          StepState = "pending"
	StepInProgress       StepState = "in_progress"
	StepComplete         StepState = "complete"
	StepError            StepState = "error"
	StepCancelled        StepState = "cancelled"
	StepResolvedManually StepState = "resolved_manually"
)

// State is a task's state, derived from its steps' states.
type State string

// The states of a task.
const (
	Pending    State = "pending"
	InProgress State = "in_progress"
	Complete   State = "complete"
	Errored    State = "error"
	Cancelled  State = "cancelled"
)

// Outcome is how a dispatch was concluded.
type Outcome string

// The outcomes of a dispatch. Success and the failures are reported by workers; the rest are the server's.
const (
	Success          Outcome = "success"
	RetryableFailure Outcome = "retryable_failure"
	PermanentFailure Outcome = "permanent_failure"
	TimedOut         Outcome = "timed_out"
	LostLease        Outcome = "lost_lease"
	Released         Outcome = "released"
	Undelivered      Outcome = "undelivered"
	DeadlineExceeded Outcome = "deadline_exceeded"
	OutcomeCancelled Outcome = "cancelled"
)

// Policy is a step's retry policy. A nil field means the default.
type Policy struct {
	RetryLimit    int            // total runs, the first included; 1 … 1000; default 3
	Retryable     bool           // false: any failure is final
	Initial       *time.Duration // delay after the first failure; default 2 s
	Multiplier    *float64       // growth per failure, ≥ 1; default 2
	Max           *time.Duration // cap of the delay before jitter; default 30 s
	Jitter        *float64       // 0 … 1: share of the delay added at random; default 0.1
	MaxRetryAfter *time.Duration // clamp of a server-directed delay; default 24 h
	Lease         *time.Duration // 5 s … 1 h; default 30 s, see store/sql/claim.sql
	RunTimeout    *time.Duration // handler_config.timeout; default none
	MaxLostLeases int            // ≥ 1; default 3
	MaxElapsed    *time.Duration // from the first dispatch; default none
	NonRetryable  []string       // error codes that make a retryable failure final
}

// StepSpec is one step of a submit, checked and with its defaults filled in.
type StepSpec struct {
	Name          string
	Handler       string
	Circuit       string // empty: none
	Priority      int    // 0 (most urgent) … 3
	HandlerConfig string // one JSON object, verbatim; empty means {}
	Parents       []int  // step numbers, ascending
	Policy
}

// Submission is a task to be stored, checked.
type Submission struct {
	Namespace       string
	Name            string
	TemplateName    string
	TemplateVersion string
	Context         string // one JSON object, verbatim
	Labels          []string
	IdempotencyKey  string // empty: none
	Digest          []byte // of the request body; compared when the key was used before
	NotBefore       *time.Time
	Deadline        *time.Time
	TraceContext    string
	Actor           string
	Steps           []StepSpec // step number n is Steps[n-1]; parents come by number, in any order
}

// Submitted is the answer to a submit.
type Submitted struct {
	TaskID           ID
	AlreadySubmitted bool
	CreatedAt        time.Time // of a task that this submit made
}
