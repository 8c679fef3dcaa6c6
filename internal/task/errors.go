package task

import (
	"errors"
	"fmt"
	"time"
)

// Reason is the machine-readable cause of a refusal. Each value is the name of an ErrorReason of the contract; the one
// table that turns it into a status is in package rpc.
type Reason string

// The reasons, grouped by the status they become.
const (
	Validation        Reason = "VALIDATION"
	DAGCycle          Reason = "DAG_CYCLE"
	UnknownDependency Reason = "UNKNOWN_DEPENDENCY"
	DuplicateStep     Reason = "DUPLICATE_STEP"
	PayloadTooLarge   Reason = "PAYLOAD_TOO_LARGE"
	BadPageToken      Reason = "BAD_PAGE_TOKEN"

	TaskNotFound     Reason = "TASK_NOT_FOUND"
	StepNotFound     Reason = "STEP_NOT_FOUND"
	TemplateNotFound Reason = "TEMPLATE_NOT_FOUND"
	CircuitNotFound  Reason = "CIRCUIT_NOT_FOUND"

	IdempotencyKeyReused  Reason = "IDEMPOTENCY_KEY_REUSED"
	TemplateVersionExists Reason = "TEMPLATE_VERSION_EXISTS"

	LeaseLost        Reason = "LEASE_LOST"
	ResultConflict   Reason = "RESULT_CONFLICT"
	TaskFinished     Reason = "TASK_FINISHED"
	StepFinished     Reason = "STEP_FINISHED"
	StepNotInError   Reason = "STEP_NOT_IN_ERROR"
	SessionTakenOver Reason = "SESSION_TAKEN_OVER"
	WorkerIDInUse    Reason = "WORKER_ID_IN_USE"

	Conflict            Reason = "CONFLICT"
	RateLimited         Reason = "RATE_LIMITED"
	TooManyStreams      Reason = "TOO_MANY_STREAMS"
	DatabaseUnavailable Reason = "DATABASE_UNAVAILABLE"
	Draining            Reason = "DRAINING"
)

// Error is a refusal that a caller may see: its reason, what it is about, and how long to wait.
type Error struct {
	Reason   Reason
	Message  string            // for people; may change
	Field    string            // path of the request field at fault, e.g. steps[3].depends_on[0]
	Metadata map[string]string // e.g. the existing task_id of a reused key
	RetryIn  time.Duration     // > 0: when to try again
}

func (e *Error) Error() string {
	if e.Field != "" {
		return fmt.Sprintf("%s: %s: %s", e.Reason, e.Field, e.Message)
	}
	return fmt.Sprintf("%s: %s", e.Reason, e.Message)
}

// Is makes errors.Is compare by reason.
func (e *Error) Is(target error) bool {
	var other *Error
	return errors.As(target, &other) && other.Reason == e.Reason
}

// Refuse makes an Error.
func Refuse(reason Reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Invalid makes a VALIDATION error about a field.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Reason: Validation, Field: field, Message: fmt.Sprintf(format, args...)}
}

// With adds a metadata entry and returns e.
func (e *Error) With(key, value string) *Error {
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[key] = value
	return e
}

// At sets the field's path and returns e.
func (e *Error) At(field string) *Error {
	e.Field = field
	return e
}

// After sets the wait and returns e.
func (e *Error) After(d time.Duration) *Error {
	e.RetryIn = d
	return e
}
