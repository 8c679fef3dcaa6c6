package rpc

import (
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

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
		pb.File_tasker_v1_errors_proto, pb.File_tasker_v1_step_proto, pb.File_tasker_v1_step_service_proto,
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
	switch m.(type) {
	case *pb.ReportStepResultRequest, *pb.BatchReportStepResultsRequest:
		// What a program failed with is recorded, whatever it is: see errorText.
		return nil
	case *pb.HeartbeatStepsRequest, *pb.ReleaseStepsRequest:
		// Each entry is checked alone.
		return nil
	}
	return nulFree(m.ProtoReflect(), "")
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
