package rpc

import (
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Every enum of the contract that mirrors words of the database spells them in capitals behind a prefix of its own. So the
// translation is one rule for all of them.

// enum is a generated enum type.
type enum interface {
	~int32
	protoreflect.Enum
}

// vocabulary translates between the words of the database and the values of one enum.
type vocabulary[E enum] struct {
	values map[string]E
	words  map[E]string
}

func newVocabulary[E enum](prefix string) vocabulary[E] {
	var zero E
	v := vocabulary[E]{values: map[string]E{}, words: map[E]string{}}
	for i := range zero.Descriptor().Values().Len() {
		value := zero.Descriptor().Values().Get(i)
		if value.Number() == 0 {
			continue // unspecified: no word
		}
		word := strings.ToLower(strings.TrimPrefix(string(value.Name()), prefix))
		v.values[word], v.words[E(value.Number())] = E(value.Number()), word
	}
	return v
}

// value is the enum's value of a word, unspecified for an empty word or one that the contract does not have.
func (v vocabulary[E]) value(word string) E { return v.values[word] }

// word is the database's word of a value, empty for unspecified.
func (v vocabulary[E]) word(value E) string { return v.words[value] }

var (
	taskStates         = newVocabulary[pb.TaskState]("TASK_STATE_")
	stepStates         = newVocabulary[pb.StepState]("STEP_STATE_")
	executionStatuses  = newVocabulary[pb.ExecutionStatus]("EXECUTION_STATUS_")
	recommendedActions = newVocabulary[pb.RecommendedAction]("RECOMMENDED_ACTION_")
	healthStatuses     = newVocabulary[pb.HealthStatus]("HEALTH_STATUS_")
	parkedReasons      = newVocabulary[pb.ParkedReason]("PARKED_REASON_")
	delaySources       = newVocabulary[pb.DelaySource]("DELAY_SOURCE_")
	outcomes           = newVocabulary[pb.DispatchOutcome]("DISPATCH_OUTCOME_")
	revokeReasons      = newVocabulary[pb.RevokeReason]("REVOKE_REASON_")
	blockerReasons     = newVocabulary[pb.BlockerReason]("BLOCKER_REASON_")
	blames             = newVocabulary[pb.Blame]("BLAME_")
	waits              = newVocabulary[pb.WaitingFor]("WAITING_FOR_")
	circuitStates      = newVocabulary[pb.CircuitState]("CIRCUIT_STATE_")
	circuitCauses      = newVocabulary[pb.CircuitCause]("CIRCUIT_CAUSE_")
)

// ---------------------------------------------------------------- times

func timestamp(t *time.Time) *timestamppb.Timestamp {
	if t == nil || t.IsZero() {
		return nil
	}
	return timestamppb.New(*t)
}

func duration(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

// instant is a Timestamp as the database will hold it.
func instant(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime().Add(time.Microsecond - 1).Truncate(time.Microsecond)
	return &at
}

// span is a Duration as the database will hold it: whole microseconds, rounded up, since nothing may happen earlier than was
// asked for.
func span(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	up := d.AsDuration()
	if rest := up % time.Microsecond; rest > 0 {
		up += time.Microsecond - rest
	}
	return &up
}

// ---------------------------------------------------------------- labels

// labelList is a map of labels as the database holds it: "key=value", sorted.
func labelList(labels map[string]string) []string {
	list := make([]string, 0, len(labels))
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return list
}

// labelMap is the opposite of labelList. A key holds no "=".
func labelMap(list []string) map[string]string {
	if len(list) == 0 {
		return nil
	}
	labels := make(map[string]string, len(list))
	for _, l := range list {
		k, v, _ := strings.Cut(l, "=")
		labels[k] = v
	}
	return labels
}

// ---------------------------------------------------------------- numbers

// count is a number as the contract carries it. None of them comes near the limit; one that did would not turn negative.
func count(n int) int32 { return int32(min(max(n, math.MinInt32), math.MaxInt32)) }
