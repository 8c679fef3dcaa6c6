package task

import "time"

// TaskNotFinished refuses what only an ended task allows.
const TaskNotFinished Reason = "TASK_NOT_FINISHED"

// View is a task as a reader sees it, with the sum of its steps, in one snapshot.
type View struct {
	ID              ID
	Namespace       string
	Name            string
	TemplateName    string // empty: inline steps
	TemplateVersion string
	State           State
	Labels          []string // 'key=value', sorted
	IdempotencyKey  string
	Context         string // one JSON object, verbatim; only where it was asked for
	NotBefore       *time.Time
	Deadline        *time.Time
	CreatedAt       time.Time
	CreatedBy       string
	EndedAt         *time.Time // nil while it is pending or in progress
	TraceContext    string
	StepCount       int
	Execution       ExecutionContext
}

// Ended tells whether the task is complete, in error or cancelled.
func (v *View) Ended() bool {
	return v.State == Complete || v.State == Errored || v.State == Cancelled
}

// ExecutionContext sums up a task's steps. The seven counts are disjoint and add up to Total. The three words are those
// of the SQL surface.
type ExecutionContext struct {
	Total           int
	Pending         int // not ready: their parents are unfinished, or they are deferred and never failed
	InProgress      int
	Completed       int // complete or resolved_manually
	Failed          int // for good
	Ready           int // due retries included
	WaitingForRetry int
	Cancelled       int

	ExecutionStatus      string
	RecommendedAction    string
	CompletionPercentage float64 // 0 … 100, two decimals
	HealthStatus         string
}

// LeafResults are the results of a task's complete leaves, as far as they fit; the rest is named.
type LeafResults struct {
	Results []DependencyResult
	Omitted []string
}

// StepView is a step as a reader sees it: its readiness row with definition, failure, lease and payloads.
type StepView struct {
	ID                    StepID
	Name                  string
	Handler               string
	Circuit               string
	Priority              int
	State                 StepState
	DependenciesSatisfied bool
	RetryEligible         bool
	ReadyForExecution     bool
	BlockedBy             []string // failed ancestors first, then unfinished parents; at most 32
	TotalParents          int
	CompletedParents      int
	DependsOn             []string
	Attempts              int
	RetryLimit            int
	Dispatches            int
	LostLeases            int
	Epoch                 int
	ParkedReason          string // empty: not failed for good
	ErrorCode             string
	NextRetryAt           *time.Time
	LastFailureAt         *time.Time
	LastAttemptedAt       *time.Time
	LastStartedAt         *time.Time
	BackoffRequest        *time.Duration // nil: the last failure asked for no delay
	LastFailure           *Failure       // of this epoch; nil: none
	Lease                 *LeaseView     // nil unless in progress
	EndedAt               *time.Time
	WaitingFor            string     // why it is not running; empty: it runs or has ended
	WaitingUntil          *time.Time // when that may change by itself; nil: not known

	// Only where payloads were asked for.
	Results       string
	Checkpoint    string
	HandlerConfig string
}

// LeaseView says who runs a step now.
type LeaseView struct {
	WorkerID    string
	InstanceID  string
	Dispatch    int
	GrantedAt   time.Time
	ConfirmedAt *time.Time
	ExpiresAt   time.Time
}

// AttemptView is one dispatch of a step, from its grant to its end.
type AttemptView struct {
	Dispatch     int
	Attempt      int // 0: it did not count, or has not ended
	Epoch        int
	WorkerID     string
	InstanceID   string
	GrantedAt    *time.Time // known while it runs
	StartedAt    *time.Time
	EndedAt      *time.Time
	Outcome      Outcome  // empty: it runs
	Failure      *Failure // nil: it did not fail
	Delay        *time.Duration
	DelaySource  DelaySource
	DelayClamped bool
	NextRetryAt  *time.Time
	Late         *LateReport
}

// LateReport is a report that came after the step had gone on without its dispatch: evidence that changed nothing.
type LateReport struct {
	Outcome    Outcome
	Failure    *Failure // nil for a success
	Results    string
	RecordedAt time.Time
	Reports    int // how many came; only the first is kept
}

// WorkerView is a worker's session and what it holds.
type WorkerView struct {
	SessionID   int32
	WorkerID    string
	InstanceID  string
	Handlers    []string
	MaxInFlight int
	InFlight    int
	Labels      []string
	BuildID     string
	ClientInfo  string
	OpenedAt    time.Time
	SeenAt      time.Time
	DrainedAt   *time.Time
	ClosedAt    *time.Time
}

// TemplateView is a stored version of a template. Body is the message as it was registered, without namespace, name and
// version.
type TemplateView struct {
	Namespace string
	Name      string
	Version   string
	Body      []byte
	CreatedAt time.Time
	CreatedBy string
}

// NewTemplate is a template to be registered. Digest is taken over Body, so that equal bodies are found whatever their
// version.
type NewTemplate struct {
	Namespace string
	Name      string
	Version   string // empty: the server chooses
	Body      []byte
	Digest    []byte
	Actor     string
}

// Registered is the answer to a registration.
type Registered struct {
	Version           string
	AlreadyRegistered bool
	RegisteredAt      time.Time
}

// Page is one page of a list. NextToken is empty at the end.
type Page[T any] struct {
	Items     []T
	NextToken string
}

// PageRequest asks for a page: Size ≤ 0 means the default, and Token comes from the page before.
type PageRequest struct {
	Size  int
	Token string
}

// The sizes of a page.
const (
	DefaultPageSize = 50
	MaxPageSize     = 1000
)

// Limit is how many items the page may hold.
func (r PageRequest) Limit() int {
	switch {
	case r.Size <= 0:
		return DefaultPageSize
	case r.Size > MaxPageSize:
		return MaxPageSize
	}
	return r.Size
}

// Filter finds tasks of a namespace. What is empty or nil does not filter.
type Filter struct {
	Namespace       string
	States          []State
	TemplateName    string
	TemplateVersion string
	Labels          []string // 'key=value', all of which the task must bear
	CreatedFrom     *time.Time
	CreatedBefore   *time.Time
}

// BulkRetry finds steps in error, and says how to reset them. What is empty or nil does not filter.
type BulkRetry struct {
	Namespace    string
	Handlers     []string
	ErrorCodes   []string
	TemplateName string
	Tasks        []ID
	FailedFrom   *time.Time
	FailedBefore *time.Time
	ParkedOnly   bool

	MaxSteps int           // ≤ 0: 1,000, which is also the most
	Spread   time.Duration // the steps come due evenly over it
	Actor    string
	Reason   string
}

// MaxBulkRetry is how many steps one BulkRetrySteps resets.
const MaxBulkRetry = 1000

// CancelAnswer is what a cancel did.
type CancelAnswer struct {
	Task   View
	Steps  int // how many this call cancelled; 0: the task was cancelled before
	Leases int // those of them that were running
}
