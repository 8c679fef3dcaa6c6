package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Pauses between two tries of one call.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// verdict is what an answer makes of a call.
type verdict int

const (
	done    verdict = iota // answered: the call took effect
	again                  // unknown or not now: the very same call again
	correct                // the call is wrong: another one may be right
	drop                   // it is over: nothing more to say
)

// verdicts by code. A code that is not here is a defect somewhere or came from something between us and the server; both may
// pass, and every call of a worker may be repeated safely.
var verdicts = map[codes.Code]verdict{
	codes.OK:                 done,
	codes.InvalidArgument:    correct,
	codes.FailedPrecondition: drop,
	codes.PermissionDenied:   drop,
	codes.Unauthenticated:    drop,
}

func judge(status *taskerv1.EntryStatus) verdict {
	if verdict, ok := verdicts[code(status)]; ok {
		return verdict
	}
	return again
}

func code(status *taskerv1.EntryStatus) codes.Code {
	return codes.Code(status.GetCode()) //nolint:gosec // A code that is none is not in any table here.
}

// statusOf says of a whole call what an entry's status would say.
func statusOf(err error) *taskerv1.EntryStatus {
	if err == nil {
		return &taskerv1.EntryStatus{}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = status.FromContextError(err).Err()
	}
	got := status.Convert(err)
	entry := &taskerv1.EntryStatus{Code: int32(got.Code()), Message: got.Message()} //nolint:gosec // There are 17 codes.
	for _, detail := range got.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			entry.Reason = taskerv1.ErrorReason(taskerv1.ErrorReason_value["ERROR_REASON_"+detail.GetReason()])
			entry.Metadata = detail.GetMetadata()
		case *errdetails.RetryInfo:
			entry.RetryDelay = detail.GetRetryDelay()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				entry.FieldViolations = append(entry.FieldViolations,
					&taskerv1.FieldViolation{Field: violation.GetField(), Description: violation.GetDescription()})
			}
		}
	}
	return entry
}

// retryDelay is the least time that an error asks to wait.
func retryDelay(err error) time.Duration { return atLeast(statusOf(err).GetRetryDelay()) }

func atLeast(delay *durationpb.Duration) time.Duration {
	if delay == nil {
		return 0
	}
	return delay.AsDuration()
}

// backoff draws growing pauses, each at random between nothing and its bound, so that workers that lost the same server do
// not come back in step.
type backoff struct {
	first, most, bound time.Duration
}

func newBackoff(first, most time.Duration) *backoff {
	return &backoff{first: first, most: most, bound: first}
}

// next draws a pause and doubles the bound.
func (b *backoff) next() time.Duration {
	pause := rand.N(b.bound) //nolint:gosec // Jitter is no secret.
	b.bound = min(2*b.bound, b.most)
	return pause
}

// reset goes back to the first bound.
func (b *backoff) reset() { b.bound = b.first }

// wait pauses, at least as long as it was asked to, and says whether ctx is still there.
func (b *backoff) wait(ctx context.Context, least time.Duration) bool {
	timer := time.NewTimer(least + b.next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
