package task

import (
	"encoding/base64"
	"encoding/binary"
	"time"
)

// Token is a lease_token taken apart. Only Nonce makes it unguessable: 128 random bits that stand in the lease row and
// cannot be derived from anything else. The rest says where to look.
type Token struct {
	NamespaceID int32
	Step        StepID
	Dispatch    int32
	SessionID   int32
	CircuitID   int32 // of the step's shared circuit; 0: none
	Nonce       [16]byte
}

const (
	tokenVersion = 1
	tokenLen     = 1 + 4 + 8 + 4 + 4 + 4 + 16
)

//nolint:gosec // the bits are what travels, whatever their sign
func (t Token) String() string {
	var b [tokenLen]byte
	b[0] = tokenVersion
	binary.BigEndian.PutUint32(b[1:], uint32(t.NamespaceID))
	binary.BigEndian.PutUint64(b[5:], uint64(t.Step))
	binary.BigEndian.PutUint32(b[13:], uint32(t.Dispatch))
	binary.BigEndian.PutUint32(b[17:], uint32(t.SessionID))
	binary.BigEndian.PutUint32(b[21:], uint32(t.CircuitID))
	copy(b[25:], t.Nonce[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// ParseToken reads a lease_token. A string that no server can have issued gives ok = false.
//
//nolint:gosec // the bits are what travels; the signs are checked at the end
func ParseToken(s string) (t Token, ok bool) {
	if len(s) != base64.RawURLEncoding.EncodedLen(tokenLen) {
		return Token{}, false
	}
	var b [tokenLen]byte
	n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(s))
	if err != nil || n != tokenLen || b[0] != tokenVersion {
		return Token{}, false
	}
	t = Token{
		NamespaceID: int32(binary.BigEndian.Uint32(b[1:])),
		Step:        StepID(binary.BigEndian.Uint64(b[5:])),
		Dispatch:    int32(binary.BigEndian.Uint32(b[13:])),
		SessionID:   int32(binary.BigEndian.Uint32(b[17:])),
		CircuitID:   int32(binary.BigEndian.Uint32(b[21:])),
	}
	copy(t.Nonce[:], b[25:])
	no := t.Step.No()
	return t, t.NamespaceID > 0 && t.Step > 0 && no >= 1 && no <= MaxSteps && t.Dispatch > 0 && t.SessionID > 0 && t.CircuitID >= 0
}

// Failure is what a worker (or the server, for a timeout) says about a failed run.
type Failure struct {
	ErrorCode  string
	Message    string
	ErrorClass string
	HTTPStatus int // 0: none
	StackTrace string
	Details    string // one JSON object, verbatim; empty: none
}

// DelaySource says where a failed step's delay came from.
type DelaySource string

// The sources of a delay. An unreadable header leaves the step to its backoff and says so.
const (
	FromBackoff          DelaySource = "backoff"
	FromRetryAfter       DelaySource = "retry_after"
	FromRetryAt          DelaySource = "retry_at"
	FromHeaderSeconds    DelaySource = "header_seconds"
	FromHeaderDate       DelaySource = "header_date"
	FromHeaderUnreadable DelaySource = "header_unreadable"
)

// Hint is the delay a failing service asked for. At most one of After and At is set.
type Hint struct {
	Source DelaySource
	After  *time.Duration
	At     *time.Time
}

// Report is one outcome under one lease token, decoded and checked.
type Report struct {
	Token   Token
	Outcome Outcome // Success, PermanentFailure or RetryableFailure
	Results string  // of a success: one JSON object, verbatim
	Failure Failure
	Hint    Hint
	Skip    bool     // accounting = SKIP: the run does not count
	Digest  [32]byte // SHA-256 over the decoded outcome

	// What shared circuits are charged with.
	Blame        Blame         // of a retryable failure; empty: the dependency
	ReachCircuit bool          // the failure reaches the step's whole circuit
	RunDuration  time.Duration // by the worker's clock; 0: by the database's
	Observations []CircuitObservation
}

// Reported is the answer to a report: the step after the transition.
type Reported struct {
	AlreadyRecorded bool
	Step            StepID
	State           StepState
	Attempts        int
	RetryLimit      int
	Dispatches      int
	LostLeases      int
	Epoch           int
	Parked          bool   // failed for good
	ParkedReason    string // why; empty: not failed for good
	RetryEligible   bool
	ErrorCode       string
	RecordedAt      time.Time
	NextRetryAt     *time.Time
	AppliedDelay    *time.Duration // base delay plus jitter
	DelaySource     DelaySource
	DelayClamped    bool
	ReachedCircuit  bool     // the failure was taken to reach the step's whole circuit
	ChangedCircuits []string // circuits that came to another state, or another wave, with this report's batch
}

// ReadyStep is one granted dispatch: what a worker needs to run the step.
type ReadyStep struct {
	Token           Token
	Namespace       string
	Task            ID
	TaskName        string
	StepNo          int
	StepName        string
	Handler         string
	Attempt         int // the number this run will have if it counts
	RetryLimit      int
	Dispatch        int
	Context         string
	HandlerConfig   string
	Dependencies    []DependencyResult // in the order of the step's parents
	Omitted         []string           // parents whose results did not fit
	Checkpoint      string             // of an earlier dispatch; empty: none
	PreviousFailure *PreviousFailure
	TraceContext    string
	Labels          []string // of the task: 'key=value', sorted
	GrantedAt       time.Time
	LeaseExpiresAt  time.Time     // the delivery lease: confirm before it
	LeaseDuration   time.Duration // the lease once confirmed
	HeartbeatBy     time.Duration // beat at least this often: LeaseDuration / 3
	RunTimeout      time.Duration // 0: none; counted from the confirmation
	Deadline        *time.Time    // the task's deadline or the step's max_elapsed, whichever is first
	DeliveryTimeout time.Duration
	Circuit         string // the shared circuit it calls; empty: none
	Probe           bool   // the circuit is half-open: this run decides
}

// DependencyResult is one parent's results.
type DependencyResult struct {
	Name    string
	Results string
}

// PreviousFailure is the last failed run of a step that is dispatched again.
type PreviousFailure struct {
	Failure
	Outcome  Outcome
	Dispatch int
	Attempt  int
	EndedAt  time.Time
}

// RevokeReason says why a lease was taken away.
type RevokeReason string

// The reasons a lease is revoked for.
const (
	RevokedCancelled RevokeReason = "task_cancelled"
	RevokedTimedOut  RevokeReason = "timed_out"
	RevokedOperator  RevokeReason = "operator"
	RevokedLost      RevokeReason = "lease_lost"
	RevokedDeadline  RevokeReason = "deadline_exceeded"
)
