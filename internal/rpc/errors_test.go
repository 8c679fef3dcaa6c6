package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/task"
)

var quiet = slog.New(slog.DiscardHandler)

// The code of each reason is the one that its comment in errors.proto begins with.
func TestEveryReasonHasTheCodeOfItsComment(t *testing.T) {
	source, err := os.ReadFile("../../proto/tasker/v1/errors.proto")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	comment := regexp.MustCompile(`(?m)^  // ([A-Z_]+)[:,](?:[^\n]*\n  //)*[^\n]*\n  (ERROR_REASON_[A-Z_]+) = \d+;`)
	for _, m := range comment.FindAllStringSubmatch(string(source), -1) {
		said[m[2]] = m[1]
	}
	for n, name := range pb.ErrorReason_name {
		reason := pb.ErrorReason(n)
		if reason == pb.ErrorReason_ERROR_REASON_UNSPECIFIED {
			continue
		}
		code, ok := rpc.CodeOf(reason)
		if !ok {
			t.Errorf("%s is not in the table", name)
			continue
		}
		if want := strings.ReplaceAll(said[name], "_", ""); !strings.EqualFold(code.String(), want) {
			t.Errorf("%s is %s, its comment says %q", name, code, said[name])
		}
	}
}

// Every reason that the packages below can give has a name in the contract, other than INTERNAL.
func TestEveryReasonIsInTheContract(t *testing.T) {
	words := constants(t, "Reason")
	for word := range words {
		if got := rpc.ReasonOf(task.Reason(word)); got.String() != "ERROR_REASON_"+word {
			t.Errorf("%s becomes %s", word, got)
		}
	}
	if len(words) < 20 {
		t.Errorf("only %d reasons found in package task", len(words))
	}
}

func detail[M proto.Message](st *status.Status) (found M) {
	for _, d := range st.Details() {
		if m, ok := d.(M); ok {
			found = m
		}
	}
	return found
}

func TestARefusalCarriesItsDetails(t *testing.T) {
	for n := range pb.ErrorReason_name {
		reason := pb.ErrorReason(n)
		word := strings.TrimPrefix(reason.String(), "ERROR_REASON_")
		code, ok := rpc.CodeOf(reason)
		if !ok {
			continue
		}
		st := rpc.Status(t.Context(), quiet, fmt.Errorf("doing this: %w", task.Refuse(task.Reason(word), "because").With("namespace", "default")))
		info := detail[*errdetails.ErrorInfo](st)
		if st.Code() != code || info.GetDomain() != "tasker" || info.GetReason() != word || info.GetMetadata()["namespace"] != "default" {
			t.Errorf("%s: %v", word, st.Proto())
		}
		waits := code == codes.Aborted || code == codes.ResourceExhausted || code == codes.Unavailable
		if retry := detail[*errdetails.RetryInfo](st); waits != (retry.GetRetryDelay().AsDuration() > 0) {
			t.Errorf("%s: retry after %v", word, retry.GetRetryDelay().AsDuration())
		}
		entry := rpc.Entry(t.Context(), quiet, task.Refuse(task.Reason(word), "because").After(3*time.Second))
		if codes.Code(entry.GetCode()) != code || entry.GetReason() != reason || waits != (entry.GetRetryDelay().AsDuration() == 3*time.Second) {
			t.Errorf("%s as an entry: %v", word, entry)
		}
	}
	st := rpc.Status(t.Context(), quiet, task.Refuse("QUOTA_EXCEEDED", "no more").With("namespace", "n"))
	if q := detail[*errdetails.QuotaFailure](st).GetViolations(); len(q) != 1 || q[0].GetSubject() != "namespace:n" {
		t.Errorf("quota: %v", q)
	}
	st = rpc.Status(t.Context(), quiet, task.Invalid("task.name", "is required"))
	if f := detail[*errdetails.BadRequest](st).GetFieldViolations(); len(f) != 1 || f[0].GetField() != "task.name" {
		t.Errorf("field: %v", f)
	}
	if info := detail[*errdetails.ErrorInfo](st); info.GetMetadata()["field"] != "task.name" {
		t.Errorf("field: %v", info)
	}
}

// A status travels in the trailers. Clients that keep to 8 KiB of them must be able to read it.
func TestAStatusIsSmall(t *testing.T) {
	long := strings.Repeat("ü", 5000)
	var fields []*pb.FieldViolation
	for i := range 1000 {
		fields = append(fields, &pb.FieldViolation{Field: fmt.Sprintf("steps[%d].%s", i, long), Description: long})
	}
	for name, err := range map[string]error{
		"fields": rpc.Violations(fields...),
		"path":   task.Refuse(task.DAGCycle, "%s", long).With("path", long),
	} {
		st := rpc.Status(t.Context(), quiet, err)
		// Details go in base64, the message percent-encoded, three bytes for each of a character's.
		if size := proto.Size(st.Proto())*4/3 + 3*len(st.Message()); size > 8<<10 {
			t.Errorf("%s: %d bytes", name, size)
		}
	}
	bad := detail[*errdetails.BadRequest](rpc.Status(t.Context(), quiet, rpc.Violations(fields...))).GetFieldViolations()
	if last := bad[len(bad)-1]; !strings.Contains(last.GetDescription(), "violations more") {
		t.Errorf("the rest is not counted: %v", last)
	}
}

func TestTroubleOfTheDatabaseIsUnavailable(t *testing.T) {
	pg := func(code string) error { return &pgconn.PgError{Code: code, Message: "secret"} }
	for name, err := range map[string]error{
		"admin shutdown":      pg("57P01"),
		"crash shutdown":      pg("57P02"),
		"cannot connect now":  pg("57P03"),
		"read only":           pg("25006"),
		"too many clients":    pg("53300"),
		"connection failure":  pg("08006"),
		"closed pool":         puddle.ErrClosedPool,
		"closed connection":   pgconn.ErrConnClosed,
		"broken connection":   io.ErrUnexpectedEOF,
		"network":             &net.OpError{Op: "read", Err: errors.New("reset")},
		"connecting":          &pgconn.ConnectError{},
		"connecting in time":  fmt.Errorf("acquiring: %w", context.DeadlineExceeded),
		"the engine is going": fmt.Errorf("flushing: %w", context.Canceled),
	} {
		st := rpc.Status(t.Context(), quiet, fmt.Errorf("reading: %w", err))
		if st.Code() != codes.Unavailable || detail[*errdetails.ErrorInfo](st).GetReason() != "DATABASE_UNAVAILABLE" ||
			detail[*errdetails.RetryInfo](st).GetRetryDelay().AsDuration() <= 0 || strings.Contains(st.Message(), "secret") {
			t.Errorf("%s: %v", name, st.Proto())
		}
	}
}

func TestTheCallsOwnEndIsToldAsSuch(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for _, err := range []error{context.Canceled, context.DeadlineExceeded, errors.New("timeout"), pgconn.ErrConnClosed} {
		if st := rpc.Status(cancelled, quiet, err); st.Code() != codes.Canceled || len(st.Details()) != 0 {
			t.Errorf("cancelled: %v", st.Proto())
		}
		if st := rpc.Status(late, quiet, err); st.Code() != codes.DeadlineExceeded || len(st.Details()) != 0 {
			t.Errorf("too late: %v", st.Proto())
		}
	}
	// A refusal stands, whatever the time.
	if st := rpc.Status(late, quiet, task.Refuse(task.LeaseLost, "gone")); st.Code() != codes.FailedPrecondition {
		t.Errorf("refused: %v", st.Proto())
	}
}

func TestADefectShowsNothingButAnID(t *testing.T) {
	var log bytes.Buffer
	st := rpc.Status(t.Context(), slog.New(slog.NewTextHandler(&log, nil)),
		fmt.Errorf("storing step_end: %w", &pgconn.PgError{Code: "22P02", Message: `invalid input: "hunter2"`, Detail: "hunter2", Routine: "json_in"}))
	info := detail[*errdetails.ErrorInfo](st)
	id := info.GetMetadata()["error_id"]
	if st.Code() != codes.Internal || info.GetReason() != "INTERNAL" || len(id) < 16 || !strings.Contains(st.Message(), id) {
		t.Errorf("told: %v", st.Proto())
	}
	if strings.Contains(st.Message(), "step_end") || strings.Contains(st.String(), "hunter2") {
		t.Errorf("told too much: %v", st.Proto())
	}
	if said := log.String(); !strings.Contains(said, id) || !strings.Contains(said, "storing step_end") || !strings.Contains(said, "json_in") ||
		strings.Contains(said, "hunter2") {
		t.Errorf("logged: %s", said)
	}
}
