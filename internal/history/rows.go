package history

import "time"

// taskRow is what the history and the tables say of a whole task.
type taskRow struct {
	TaskID         int64
	Submits        int
	SubmittedSteps int
	Purges         int
	Completes      int
	Errors         int
	Cancels        int
	Reopens        int
	IsStored       bool
	StepCount      int
	IsDeferred     *bool
	NotBefore      *time.Time
	EndState       *string
	CreatedAt      *time.Time
	Deadline       *time.Time
}

// stepRow is a step as it was submitted.
type stepRow struct {
	TaskID        int64
	StepNo        int
	Parents       []int32
	RetryLimit    int
	Retryable     bool
	MaxLostLeases int
	Initial       *int64
	Multiplier    *float64
	Max           *int64
	Jitter        *float64
	MaxRetryAfter *int64
	NonRetryable  []string
	CircuitID     int32 // 0: none
	MaxElapsed    *int64
	IsPaused      bool // now
}

// placeRow is where a step stands by the tables.
type placeRow struct {
	TaskID      int64
	StepNo      int
	Place       place
	Attempts    int
	Failures    int
	Dispatches  int
	Epoch       int
	EventNo     int
	LostLeases  int
	Undelivered int
	Released    int
	Skipped     int
	Started     bool
	SessionID   *int32
	DueAt       *time.Time
	Confirmed   bool
	Reason      string
}

// failureRow is a stored failure.
type failureRow struct {
	TaskID      int64
	StepNo      int
	Dispatch    int
	Outcome     string
	Attempt     int
	Failures    int
	LostLeases  int
	Epoch       int
	EventNo     int
	SessionID   int32
	EndedAt     time.Time
	BaseDelay   *int64
	Jitter      *int64
	NextRetryAt *time.Time
	DelaySource string
	ErrorCode   string
}
