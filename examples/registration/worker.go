package registration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

// longestAnswer bounds what is read of a service's answer.
const longestAnswer = 64 << 10

// Caller runs steps by calling services. It neither waits nor retries: it says what it was answered.
type Caller struct {
	// URLs of the services, by name.
	URLs map[string]string
	// Client makes the calls. Its Timeout must be 0: each step brings its own.
	Client *http.Client
	// DropHints leaves Retry-After out of the reports, and RetryRefusals calls refusals retryable: two defects of a worker,
	// planted to see that the demo notices them.
	DropHints, RetryRefusals bool
	// Impatient makes a call that failed once more before it tells anybody: another defect.
	Impatient bool
}

// Subscriptions are the handlers of the named steps.
func (c *Caller) Subscriptions(names ...string) ([]worker.Subscription, error) {
	var subscriptions []worker.Subscription
	for _, name := range names {
		step, ok := stepNamed(name)
		if !ok {
			return nil, fmt.Errorf("no step %q in %s", name, TemplateName)
		}
		url, ok := c.URLs[step.Service]
		if !ok {
			return nil, fmt.Errorf("no URL for %s", step.Service)
		}
		subscriptions = append(subscriptions, worker.Subscription{
			Handler: name,
			Run: func(ctx context.Context, run *worker.Run) worker.Outcome {
				return c.run(ctx, url, run.Step)
			},
		})
	}
	return subscriptions, nil
}

func stepNamed(name string) (Step, bool) {
	for _, step := range Steps {
		if step.Name == name {
			return step, true
		}
	}
	return Step{}, false
}

// run calls a service once.
func (c *Caller) run(ctx context.Context, url string, step *taskerv1.ReadyStep) worker.Outcome {
	var user struct {
		ID int64 `json:"user_id"`
	}
	if err := json.Unmarshal([]byte(step.GetContext()), &user); err != nil {
		return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "BAD_CONTEXT", Message: err.Error()})
	}
	var config struct {
		RequestTimeout float64 `json:"request_timeout"`
	}
	if err := json.Unmarshal([]byte(step.GetHandlerConfig()), &config); err != nil {
		return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "BAD_CONFIG", Message: err.Error()})
	}
	if config.RequestTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(config.RequestTimeout*float64(time.Second)))
		defer cancel()
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("%s/users/%d", url, user.ID), bytes.NewReader([]byte(step.GetContext())))
	if err != nil {
		return worker.PermanentFailure(&taskerv1.Failure{ErrorCode: "BAD_REQUEST", Message: err.Error()})
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(HeaderIdempotencyKey, step.GetIdempotencyKey())
	request.Header.Set(HeaderAttempt, strconv.Itoa(int(step.GetAttempt())))
	request.Header.Set(HeaderDispatch, strconv.Itoa(int(step.GetDispatch())))
	response, err := c.Client.Do(request)
	if err != nil {
		return unanswered(err)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, longestAnswer))
	err = errors.Join(err, response.Body.Close())
	if err != nil {
		return unanswered(err)
	}
	if c.Impatient && response.StatusCode >= http.StatusInternalServerError {
		calm := *c
		calm.Impatient = false
		return calm.run(ctx, url, step)
	}
	return c.outcome(response, body)
}

// unanswered is a call without an answer. Whether the service did its work is unknown; the idempotency key makes that safe.
func unanswered(err error) worker.Outcome {
	failure := &taskerv1.Failure{ErrorCode: "NO_ANSWER", Message: err.Error(), ErrorClass: fmt.Sprintf("%T", err)}
	if errors.Is(err, context.DeadlineExceeded) {
		failure.ErrorCode = "REQUEST_TIMEOUT"
	}
	return worker.RetryableFailure(failure)
}

// outcome sorts an HTTP status into the three outcomes.
func (c *Caller) outcome(response *http.Response, body []byte) worker.Outcome {
	status := int32(response.StatusCode) //nolint:gosec // Three digits, by the standard library's own check.
	failure := &taskerv1.Failure{
		ErrorCode:  fmt.Sprintf("HTTP_%d", status),
		Message:    http.StatusText(response.StatusCode),
		HttpStatus: &status,
	}
	switch {
	case status >= 200 && status < 300:
		return worker.Success(string(bytes.TrimSpace(body)))
	case status == http.StatusTooManyRequests, status >= 500:
		var hints []worker.Hint
		if header := response.Header.Get("Retry-After"); header != "" && !c.DropHints {
			hints = append(hints, worker.RetryAfterHeader(header))
		}
		return worker.RetryableFailure(failure, hints...)
	case c.RetryRefusals:
		return worker.RetryableFailure(failure)
	default:
		return worker.PermanentFailure(failure)
	}
}
