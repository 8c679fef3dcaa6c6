package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// hints say what a person can do about a reason. They name commands, so they are kept here and not in the server.
var hints = map[string]string{
	"TASK_NOT_FOUND":          "`tasker tasks` lists the tasks of a namespace; --namespace chooses it",
	"STEP_NOT_FOUND":          "`tasker steps TASK_ID` lists the steps of a task with their ids",
	"TEMPLATE_NOT_FOUND":      "`tasker templates` lists what is registered; `tasker apply -f FILE` registers a template",
	"CIRCUIT_NOT_FOUND":       "`tasker circuits` lists the circuits of a namespace; a step, a policy or a hold that names one makes it",
	"TEMPLATE_VERSION_EXISTS": "a version never changes: leave --version out and the next one is chosen",
	"IDEMPOTENCY_KEY_REUSED":  "the key belongs to another task: use a new key for new work",
	"STEP_NOT_IN_ERROR":       "only a step in state error can be retried, resolved or completed by hand",
	"TASK_NOT_FINISHED":       "cancel the task first: `tasker task cancel TASK_ID`",
	"BAD_PAGE_TOKEN":          "start again without --page-token; a token fits only the filter it came with",
	"WORKER_ID_IN_USE":        "give every process its own --worker-id, or wait until the other one's session has ended",
	"INTERNAL":                "the server's log has the details under this error_id",
}

// explain makes of a server's refusal what a person needs: what happened, the fields at fault, the facts, what to do.
func (r *remote) explain(err error) error {
	if err == nil {
		return nil
	}
	var exit *exitError
	var refused interface{ GRPCStatus() *status.Status }
	if errors.As(err, &exit) || !errors.As(err, &refused) {
		return err
	}
	got := refused.GRPCStatus()
	message := got.Message()
	reason, hint := "", ""
	var lines []string
	for _, detail := range got.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			reason = detail.GetReason()
			hint = hints[reason]
			var facts []string
			for key, value := range detail.GetMetadata() {
				if value == "" || key == "field" { // Fields come with what is wrong about them.
					continue
				}
				facts = append(facts, fmt.Sprintf("  %s: %s", key, value))
			}
			slices.Sort(facts)
			lines = append(lines, facts...)
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				lines = append(lines, fmt.Sprintf("  %s: %s", violation.GetField(), violation.GetDescription()))
			}
		case *errdetails.RetryInfo:
			lines = append(lines, fmt.Sprintf("  may be tried again after %s", detail.GetRetryDelay().AsDuration()))
		}
	}
	switch {
	case reason != "":
		message = fmt.Sprintf("%s (%s)", message, reason)
	case got.Code() == codes.Unavailable:
		message = fmt.Sprintf("no server answers at %s: %s", r.address, message)
		hint = "start one with `tasker serve`, or name another with --address HOST:PORT"
	case got.Code() == codes.Canceled:
		message = "interrupted"
	case got.Code() == codes.DeadlineExceeded:
		message = fmt.Sprintf("no answer within %s; whether the call took effect is unknown", r.timeout)
	default:
		message = fmt.Sprintf("%s (%s)", message, got.Code())
	}
	if before, _, wrapped := strings.Cut(err.Error(), "rpc error:"); wrapped {
		message = before + message
	}
	if hint != "" {
		lines = append(lines, "hint: "+hint)
	}
	return &exitError{code: 1, err: errors.New(strings.Join(append([]string{message}, lines...), "\n"))}
}
