package rpc

import (
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// rules checks messages by the rules in the proto files. All of them are compiled when the server starts: a rule that does not
// compile must not wait for the first call that meets it.
type rules struct {
	validator protovalidate.Validator
}

func compileRules() (*rules, error) {
	var messages []protoreflect.MessageDescriptor
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_tasker_v1_circuit_proto, pb.File_tasker_v1_circuit_service_proto, pb.File_tasker_v1_errors_proto, pb.File_tasker_v1_step_proto, pb.File_tasker_v1_step_service_proto,
		pb.File_tasker_v1_task_proto, pb.File_tasker_v1_task_service_proto, pb.File_tasker_v1_template_proto,
		pb.File_tasker_v1_template_service_proto, pb.File_tasker_v1_worker_service_proto,
	} {
		for i := range file.Messages().Len() {
			messages = append(messages, file.Messages().Get(i))
		}
	}
	validator, err := protovalidate.New(protovalidate.WithMessageDescriptors(messages...), protovalidate.WithDisableLazy())
	if err != nil {
		return nil, fmt.Errorf("compiling the contract's rules: %w", err)
	}
	return &rules{validator: validator}, nil
}

// check finds every field of a message that breaks its rule.
func (r *rules) check(m proto.Message) error {
	if obvious(m) {
		return nil
	}
	return r.judge(m)
}

// judge goes through the rules.
func (r *rules) judge(m proto.Message) error {
	if mark := undecoded(m); mark != "" {
		return task.Invalid("request", "cannot be read as %s: %s", m.ProtoReflect().Descriptor().FullName(), mark)
	}
	err := r.validator.Validate(m)
	var broken *protovalidate.ValidationError
	switch {
	case errors.As(err, &broken):
		found := make(violations, len(broken.Violations))
		for i, v := range broken.Violations {
			found[i] = &pb.FieldViolation{Field: protovalidate.FieldPathString(v.Proto.GetField()), Description: v.Proto.GetMessage()}
		}
		return found
	case err != nil:
		return fmt.Errorf("checking %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	switch m := m.(type) {
	case *pb.BatchReportStepResultsRequest, *pb.HeartbeatStepsRequest, *pb.ReleaseStepsRequest:
		// Each entry is checked alone.
		return nil
	case *pb.ReportStepResultRequest:
		// What a program failed with is recorded, whatever it is: see errorText. How long it ran is never refused.
		return wellFormed(m.GetRetryableFailure().ProtoReflect(), "retryable_failure")
	}
	return errors.Join(nulFree(m.ProtoReflect(), ""), wellFormed(m.ProtoReflect(), ""))
}

// wellFormed refuses a duration or an instant whose seconds and nanoseconds contradict each other, which no rule of a field
// looks at: read as a number it might be anything.
func wellFormed(m protoreflect.Message, path string) (err error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() == nil || f.IsMap() {
			return true
		}
		name := joinField(path, string(f.Name()))
		if !f.IsList() {
			err = wellFormedValue(v.Message(), name)
			return err == nil
		}
		for i := range v.List().Len() {
			if err = wellFormedValue(v.List().Get(i).Message(), fmt.Sprintf("%s[%d]", name, i)); err != nil {
				break
			}
		}
		return err == nil
	})
	return err
}

func wellFormedValue(m protoreflect.Message, path string) error {
	switch v := m.Interface().(type) {
	case *durationpb.Duration:
		if v.CheckValid() != nil {
			return task.Invalid(path, "is no duration: seconds and nanos must bear one sign, and nanos stay below a second")
		}
	case *timestamppb.Timestamp:
		if v.CheckValid() != nil {
			return task.Invalid(path, "is no instant: nanos must be 0 to 999999999")
		}
	default:
		return wellFormed(m, path)
	}
	return nil
}

// nulFree refuses a NUL in any text: Postgres cannot store it, and no field is meant to hold one.
func nulFree(m protoreflect.Message, path string) (err error) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		if path != "" {
			name = path + "." + name
		}
		switch {
		case f.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				err = errors.Join(nulFreeValue(f.MapKey(), k.Value(), name), nulFreeValue(f.MapValue(), v, name))
				return err == nil
			})
		case f.IsList():
			for i := range v.List().Len() {
				if err = nulFreeValue(f, v.List().Get(i), fmt.Sprintf("%s[%d]", name, i)); err != nil {
					break
				}
			}
		default:
			err = nulFreeValue(f, v, name)
		}
		return err == nil
	})
	return err
}

func nulFreeValue(f protoreflect.FieldDescriptor, v protoreflect.Value, path string) error {
	switch f.Kind() {
	case protoreflect.StringKind:
		if strings.IndexByte(v.String(), 0) >= 0 {
			return task.Invalid(path, "must not contain a NUL character")
		}
	case protoreflect.MessageKind:
		return nulFree(v.Message(), path)
	default:
	}
	return nil
}
