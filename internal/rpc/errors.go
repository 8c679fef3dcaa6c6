package rpc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// domain is ErrorInfo.domain of every status raised here.
const domain = "tasker"

// verdict is what a client is told about a reason: the code it becomes and, where a client is to try again, the least wait
// if the refusal names none.
type verdict struct {
	code    codes.Code
	retryIn time.Duration
}

// verdicts is the one table of reasons and codes. What is not in it becomes INTERNAL and keeps its text to itself.
var verdicts = map[pb.ErrorReason]verdict{
	pb.ErrorReason_ERROR_REASON_VALIDATION:         {code: codes.InvalidArgument},
	pb.ErrorReason_ERROR_REASON_DAG_CYCLE:          {code: codes.InvalidArgument},
	pb.ErrorReason_ERROR_REASON_UNKNOWN_DEPENDENCY: {code: codes.InvalidArgument},
	pb.ErrorReason_ERROR_REASON_DUPLICATE_STEP:     {code: codes.InvalidArgument},
	pb.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE:  {code: codes.InvalidArgument},
	pb.ErrorReason_ERROR_REASON_BAD_PAGE_TOKEN:     {code: codes.InvalidArgument},

	pb.ErrorReason_ERROR_REASON_TASK_NOT_FOUND:     {code: codes.NotFound},
	pb.ErrorReason_ERROR_REASON_STEP_NOT_FOUND:     {code: codes.NotFound},
	pb.ErrorReason_ERROR_REASON_TEMPLATE_NOT_FOUND: {code: codes.NotFound},
	pb.ErrorReason_ERROR_REASON_CIRCUIT_NOT_FOUND:  {code: codes.NotFound},

	pb.ErrorReason_ERROR_REASON_IDEMPOTENCY_KEY_REUSED:  {code: codes.AlreadyExists},
	pb.ErrorReason_ERROR_REASON_TEMPLATE_VERSION_EXISTS: {code: codes.AlreadyExists},

	pb.ErrorReason_ERROR_REASON_LEASE_LOST:         {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_RESULT_CONFLICT:    {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_TASK_FINISHED:      {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_STEP_FINISHED:      {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_STEP_NOT_IN_ERROR:  {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_TASK_NOT_FINISHED:  {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_SESSION_TAKEN_OVER: {code: codes.FailedPrecondition},
	pb.ErrorReason_ERROR_REASON_WORKER_ID_IN_USE:   {code: codes.FailedPrecondition},

	pb.ErrorReason_ERROR_REASON_CONFLICT: {code: codes.Aborted, retryIn: 100 * time.Millisecond},

	pb.ErrorReason_ERROR_REASON_RATE_LIMITED:     {code: codes.ResourceExhausted, retryIn: time.Second},
	pb.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED:   {code: codes.ResourceExhausted, retryIn: time.Minute},
	pb.ErrorReason_ERROR_REASON_TOO_MANY_STREAMS: {code: codes.ResourceExhausted, retryIn: 5 * time.Second},

	pb.ErrorReason_ERROR_REASON_DATABASE_UNAVAILABLE: {code: codes.Unavailable, retryIn: time.Second},
	// Another server is there at once, so the wait only keeps a caller with one connection from spinning.
	pb.ErrorReason_ERROR_REASON_DRAINING: {code: codes.Unavailable, retryIn: 100 * time.Millisecond},

	pb.ErrorReason_ERROR_REASON_BAD_CREDENTIAL: {code: codes.Unauthenticated},
	pb.ErrorReason_ERROR_REASON_ROLE_REQUIRED:  {code: codes.PermissionDenied},

	pb.ErrorReason_ERROR_REASON_INTERNAL: {code: codes.Internal},
}

// reasonOf is the contract's name of a reason, ERROR_REASON_INTERNAL for one that the contract does not have.
func reasonOf(r task.Reason) pb.ErrorReason {
	if n, ok := pb.ErrorReason_value["ERROR_REASON_"+string(r)]; ok {
		return pb.ErrorReason(n)
	}
	return pb.ErrorReason_ERROR_REASON_INTERNAL
}

// violations is a refusal with every field that breaks its rule, where a task.Error names one.
type violations []*pb.FieldViolation

func (v violations) Error() string {
	if len(v) == 1 {
		return v[0].GetField() + ": " + v[0].GetDescription()
	}
	return fmt.Sprintf("%s: %s (and %d more)", v[0].GetField(), v[0].GetDescription(), len(v)-1)
}

// indexed are violations in one entry of a batch that stands or falls as a whole.
type indexed struct {
	violations
	index int
}

// refusal is an error as a client will see it, whether as the status of a call or of one entry of a batch.
type refusal struct {
	code     codes.Code
	reason   pb.ErrorReason // unspecified: the code says all, as for a deadline
	message  string
	metadata map[string]string
	fields   violations
	retryIn  time.Duration // 0: none
}

// refuse turns any error into what the client is told. ctx is the call's: when it is over, that is the reason, whatever the
// work made of it. Errors that are defects are logged here, under the id that the client gets.
func refuse(ctx context.Context, log *slog.Logger, method string, err error) refusal {
	var (
		known  *task.Error
		fields violations
		entry  indexed
	)
	switch {
	case errors.As(err, &known):
		return refused(known)
	case errors.As(err, &entry):
		r := refuse(ctx, log, method, entry.violations)
		r.metadata["index"] = strconv.Itoa(entry.index)
		return r
	case errors.As(err, &fields):
		return refusal{
			code: codes.InvalidArgument, reason: pb.ErrorReason_ERROR_REASON_VALIDATION, message: fields.Error(), fields: fields,
			metadata: map[string]string{"field": fields[0].GetField()},
		}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return refusal{code: codes.DeadlineExceeded, message: "the call's deadline passed; whether it took effect is unknown"}
	case ctx.Err() != nil:
		return refusal{code: codes.Canceled, message: "the caller cancelled the call"}
	case databaseTrouble(err):
		log.WarnContext(ctx, "database unavailable", "method", method, "error", loggable(err))
		return refused(task.Refuse(task.DatabaseUnavailable, "the database cannot be reached or is not writable"))
	}
	id := strings.ToLower(rand.Text()[:16])
	log.ErrorContext(ctx, "call failed", "method", method, "error_id", id, "error", loggable(err))
	return refusal{
		code: codes.Internal, reason: pb.ErrorReason_ERROR_REASON_INTERNAL,
		message: "internal error " + id + "; the server's log says more", metadata: map[string]string{"error_id": id},
	}
}

// refused puts a refusal under the table.
func refused(e *task.Error) refusal {
	r := refusal{reason: reasonOf(e.Reason), message: e.Message, metadata: e.Metadata, retryIn: e.RetryIn}
	v := verdicts[r.reason]
	r.code = v.code
	if r.retryIn == 0 || v.retryIn == 0 {
		r.retryIn = v.retryIn
	}
	if e.Field != "" {
		r.message = e.Field + ": " + e.Message
		r.metadata = withField(e.Metadata, e.Field)
		r.fields = violations{{Field: e.Field, Description: e.Message}}
	}
	return r
}

func withField(metadata map[string]string, field string) map[string]string {
	with := map[string]string{"field": field}
	for k, v := range metadata {
		with[k] = v
	}
	return with
}

// databaseTrouble tells errors of the way to the database, or of its state, from errors in what it was asked.
func databaseTrouble(err error) bool {
	var (
		pgErr   *pgconn.PgError
		connect *pgconn.ConnectError
		network net.Error
	)
	switch {
	case errors.As(err, &connect):
		return true
	case errors.As(err, &pgErr):
		return pgerrcode.IsConnectionException(pgErr.Code) || pgerrcode.IsInsufficientResources(pgErr.Code) ||
			pgerrcode.IsOperatorIntervention(pgErr.Code) || pgErr.Code == pgerrcode.ReadOnlySQLTransaction
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed):
		return true
	case errors.Is(err, puddle.ErrClosedPool), errors.Is(err, pgconn.ErrConnClosed):
		return true
	}
	// A context that ended below us without the call's own doing: a connection that could not be made in time, or the engine
	// on its way out.
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// loggable is an error's text without what a payload may have put into it: the database quotes the value that it could not
// read.
func loggable(err error) string {
	text := err.Error()
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgerrcode.IsDataException(pgErr.Code) || pgerrcode.IsIntegrityConstraintViolation(pgErr.Code)) {
		where := strings.TrimSpace(pgErr.Routine + " " + pgErr.TableName + " " + pgErr.ConstraintName)
		text = strings.ReplaceAll(text, pgErr.Message, "(text withheld) in "+where)
	}
	return text
}

// A status travels in the trailers, which many clients limit to 8 KiB, in base64 and percent-encoded. These keep it below that.
const (
	maxMessage    = 512
	maxValue      = 512
	maxViolations = 2 << 10
)

// status is the refusal of a whole call.
func (r refusal) status() *status.Status {
	st := status.New(r.code, clip(r.message, maxMessage))
	var details []protoadapt.MessageV1
	add := func(m protoadapt.MessageV2) { details = append(details, protoadapt.MessageV1Of(m)) }
	if r.reason != pb.ErrorReason_ERROR_REASON_UNSPECIFIED {
		add(&errdetails.ErrorInfo{Domain: domain, Reason: reasonName(r.reason), Metadata: clipped(r.metadata)})
	}
	if len(r.fields) > 0 {
		bad := &errdetails.BadRequest{}
		for _, f := range r.fields.fitting() {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: f.GetField(), Description: f.GetDescription()})
		}
		add(bad)
	}
	if r.retryIn > 0 {
		add(&errdetails.RetryInfo{RetryDelay: durationpb.New(r.retryIn)})
	}
	if r.reason == pb.ErrorReason_ERROR_REASON_QUOTA_EXCEEDED {
		add(&errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{
			{Subject: "namespace:" + r.metadata["namespace"], Description: clip(r.message, maxMessage)},
		}})
	}
	if with, err := st.WithDetails(details...); err == nil {
		return with
	}
	return st
}

// entry is the refusal of one entry of a batch.
func (r refusal) entry() *pb.EntryStatus {
	e := &pb.EntryStatus{
		Code: count(int(r.code)), Reason: r.reason, Message: clip(r.message, maxMessage), Metadata: clipped(r.metadata),
		FieldViolations: r.fields.fitting(),
	}
	if r.retryIn > 0 {
		e.RetryDelay = durationpb.New(r.retryIn)
	}
	return e
}

func reasonName(r pb.ErrorReason) string { return strings.TrimPrefix(r.String(), "ERROR_REASON_") }

// fitting is as many of the violations as fit, and a last one that counts the rest.
func (v violations) fitting() violations {
	var fit violations
	room := maxViolations
	for i, f := range v {
		f = &pb.FieldViolation{Field: clip(f.GetField(), maxValue), Description: clip(f.GetDescription(), maxValue)}
		if room -= len(f.GetField()) + len(f.GetDescription()); room < 0 && i > 0 {
			return append(fit, &pb.FieldViolation{Field: f.GetField(), Description: strconv.Itoa(len(v)-i) + " violations more, from this field on"})
		}
		fit = append(fit, f)
	}
	return fit
}

func clipped(metadata map[string]string) map[string]string {
	short := make(map[string]string, len(metadata))
	for k, v := range metadata {
		short[k] = clip(v, maxValue)
	}
	return short
}

// clip shortens s to at most n bytes, on a character's boundary, and marks that it did.
func clip(s string, n int) string {
	const mark = "…"
	if len(s) <= n {
		return s
	}
	s = s[:n-len(mark)]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + mark
}
