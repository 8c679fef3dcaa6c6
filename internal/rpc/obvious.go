package rpc

import (
	"strings"

	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// obvious tells of the requests that come by the ten thousand whether they keep every rule at a glance: they set only fields
// of which a few comparisons show it. Where it says no, nothing is known, and the rules themselves decide; where it says yes,
// they would find nothing. Going through a report's rules takes longer than reading it.
func obvious(m proto.Message) bool {
	switch m := m.(type) {
	case *pb.ReportStepResultRequest:
		return obviousReport(m)
	case *pb.BatchReportStepResultsRequest:
		// Each entry is checked alone.
		return len(m.ProtoReflect().GetUnknown()) == 0 && 1 <= len(m.GetReports()) && len(m.GetReports()) <= 1000
	case *pb.SubmitTaskRequest:
		return len(m.ProtoReflect().GetUnknown()) == 0 && obviousNamespace(m.GetNamespace()) && m.GetWaitDuration() == nil && obviousTask(m.GetTask())
	case *pb.BatchSubmitTasksRequest:
		if len(m.ProtoReflect().GetUnknown()) > 0 || !obviousNamespace(m.GetNamespace()) || len(m.GetTasks()) == 0 || len(m.GetTasks()) > 1000 {
			return false
		}
		for _, t := range m.GetTasks() {
			if !obviousTask(t) {
				return false
			}
		}
		return true
	}
	return false
}

// obviousReport: a success without observations. Its results are looked at when they are read.
func obviousReport(m *pb.ReportStepResultRequest) bool {
	success, ok := m.GetOutcome().(*pb.ReportStepResultRequest_Success)
	return ok && success.Success != nil && len(m.ProtoReflect().GetUnknown()) == 0 && m.GetLeaseToken() != "" && len(m.GetLeaseToken()) <= 255 &&
		len(m.GetObservations()) == 0
}

// obviousTask: a template by its name, and a context.
func obviousTask(m *pb.TaskSubmission) bool {
	byTemplate, ok := m.GetDefinition().(*pb.TaskSubmission_Template)
	if !ok || !isPlain(byTemplate.Template.GetName(), 255) || byTemplate.Template.Version != nil && !isCoreVersion(byTemplate.Template.GetVersion()) {
		return false
	}
	return (m.Name == nil || isPlain(m.GetName(), 255)) && (m.IdempotencyKey == nil || isPlain(m.GetIdempotencyKey(), 255)) &&
		(m.Priority == nil || 0 <= m.GetPriority() && m.GetPriority() <= 3) && strings.IndexByte(m.GetContext(), 0) < 0 &&
		len(m.GetLabels()) == 0 && len(m.GetOverrides()) == 0 && m.GetNotBefore() == nil && m.GetDeadline() == nil && m.GetTraceContext() == nil
}

func obviousNamespace(s string) bool {
	if len(s) > 63 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// isPlain tells a text of 1 to limit letters, digits, _ . : / and -, of which no dot, colon, slash or dash comes first.
func isPlain(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case i > 0 && (c == '.' || c == ':' || c == '/' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// isCoreVersion tells MAJOR.MINOR.PATCH.
func isCoreVersion(s string) bool {
	parts := 1
	for i, digits := 0, 0; i < len(s); i++ {
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			if digits++; digits > 9 || digits == 2 && s[i-1] == '0' {
				return false
			}
		case c == '.' && digits > 0 && i+1 < len(s):
			parts, digits = parts+1, 0
		default:
			return false
		}
	}
	return parts == 3
}
