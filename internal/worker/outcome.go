package worker

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Outcome is how a run ended: a report without its lease token, which the worker fills in.
type Outcome = *taskerv1.ReportStepResultRequest

// Success completes the step. results is one JSON object; empty means {}.
func Success(results string) Outcome {
	return &taskerv1.ReportStepResultRequest{Outcome: &taskerv1.ReportStepResultRequest_Success{
		Success: &taskerv1.StepSuccess{Results: results},
	}}
}

// PermanentFailure fails the step for good.
func PermanentFailure(failure *taskerv1.Failure) Outcome {
	return &taskerv1.ReportStepResultRequest{Outcome: &taskerv1.ReportStepResultRequest_PermanentFailure{
		PermanentFailure: &taskerv1.StepPermanentFailure{Failure: failure},
	}}
}

// RetryableFailure fails the run; the server says when the next one comes, by the hint where there is one.
func RetryableFailure(failure *taskerv1.Failure, hints ...Hint) Outcome {
	retryable := &taskerv1.StepRetryableFailure{Failure: failure}
	for _, hint := range hints {
		hint(retryable)
	}
	return &taskerv1.ReportStepResultRequest{Outcome: &taskerv1.ReportStepResultRequest_RetryableFailure{RetryableFailure: retryable}}
}

// Hint adds to a retryable failure what the called service said about the next try.
type Hint func(*taskerv1.StepRetryableFailure)

// RetryAfter asks for the next run after a delay.
func RetryAfter(delay time.Duration) Hint {
	return func(failure *taskerv1.StepRetryableFailure) {
		failure.RetryHint = &taskerv1.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(delay)}
	}
}

// RetryAfterHeader hands on a Retry-After header as it came. The server reads it: seconds or HTTP date.
func RetryAfterHeader(header string) Hint {
	return func(failure *taskerv1.StepRetryableFailure) {
		failure.RetryHint = &taskerv1.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: header}
	}
}

// ReachCircuit says that the failure concerns everything behind the step's shared circuit: it opens at once.
func ReachCircuit() Hint {
	return func(failure *taskerv1.StepRetryableFailure) { failure.Reach = taskerv1.Reach_REACH_CIRCUIT }
}

// BlameOn says whose fault the failure is. Unless it is the dependency's, the step's circuit is not charged with it.
func BlameOn(blame taskerv1.Blame) Hint {
	return func(failure *taskerv1.StepRetryableFailure) { failure.Blame = blame }
}

// NotCounted keeps the run from counting as an attempt.
func NotCounted() Hint {
	return func(failure *taskerv1.StepRetryableFailure) { failure.Accounting = taskerv1.Accounting_ACCOUNTING_SKIP }
}
