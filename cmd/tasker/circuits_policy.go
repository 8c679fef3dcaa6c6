package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// policyFields are the fields of a circuit's policy.
func policyFields() protoreflect.FieldDescriptors {
	return (&taskerv1.CircuitPolicy{}).ProtoReflect().Descriptor().Fields()
}

func policyNames(suffix string) []string {
	names := make([]string, policyFields().Len())
	for i := range names {
		names[i] = string(policyFields().Get(i).Name()) + suffix
	}
	return names
}

// policyTable shows a policy: what each field is, and where that is decided.
func (p *printer) policyTable(x *taskerv1.Circuit) *table {
	list := p.table("policy", "in_force", "set_by")
	own, inForce := x.GetPolicy().ProtoReflect(), x.GetPolicyInForce().ProtoReflect()
	for i := range policyFields().Len() {
		field := policyFields().Get(i)
		by := "default"
		switch {
		case own.IsValid() && own.Has(field) && x.GetName() == "":
			by = "namespace"
		case own.IsValid() && own.Has(field):
			by = "circuit"
		}
		list.add(string(field.Name()), policyValue(inForce, field), by)
	}
	return list
}

func policyValue(policy protoreflect.Message, field protoreflect.FieldDescriptor) string {
	if !policy.IsValid() || !policy.Has(field) {
		return "none"
	}
	if duration, ok := policy.Get(field).Interface().(protoreflect.Message); ok {
		if d, ok := duration.Interface().(*durationpb.Duration); ok {
			return span(d)
		}
	}
	return policy.Get(field).String()
}

// policyChange is what the flags of circuits policy say.
type policyChange struct {
	set, unset   []string
	file, reason string
	policy       *taskerv1.CircuitPolicy
	fields       []string
}

func newCircuitPolicy(c *cli, remote *remote) *cobra.Command {
	var change policyChange
	var defaults bool
	cmd := &cobra.Command{
		Use:   "policy NAME | --default",
		Short: "Show or change the policy of a circuit, or the default of the namespace",
		Long: `Show or change the policy of a circuit or, with --default, what the circuits of the namespace go by where they set nothing
themselves. Without a change the policy is shown. A circuit that nobody has named yet is made.

A file is YAML: fields and their values, as with --set; a field that is null is unset, and one that is not in the file stays as it
is. Fields: ` + strings.Join(policyNames(""), ", ") + ".",
		Example: `  tasker circuits policy user_service
  tasker circuits policy user_service --set failure_rate_threshold=0.3 --set open_duration=1m
  tasker circuits policy --default --unset max_in_flight --reason 'the pool has grown'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if defaults {
				return exactly()(cmd, args)
			}
			return exactly("NAME")(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&defaults, "default", false, "the default policy of the namespace instead of a circuit's own")
	flags.StringArrayVar(&change.set, "set", nil, "set `FIELD=VALUE`, such as rate=2.5 or window_duration=90s; may be given several times")
	flags.StringArrayVar(&change.unset, "unset", nil, "leave this `FIELD` to the default again; may be given several times")
	flags.StringVarP(&change.file, "file", "f", "", "set what this `FILE` says; - is standard input")
	flags.StringVar(&change.reason, "reason", "", "why, for the record")
	complete(cmd, "set", policyNames("="))
	complete(cmd, "unset", policyNames(""))
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		name := strings.Join(args, "") // One, or none for the default.
		if err := change.read(c); err != nil {
			return err
		}
		if len(change.fields) == 0 {
			return s.showPolicy(ctx, name)
		}
		answer, err := ask(ctx, s.remote, s.circuits.SetCircuitPolicy, &taskerv1.SetCircuitPolicyRequest{
			Namespace: s.namespace, Circuit: name, Policy: change.policy, UpdateMask: &fieldmaskpb.FieldMask{Paths: change.fields}, Reason: change.reason,
		})
		if err != nil {
			return fmt.Errorf("changing %s: %w", policyOf(name), err)
		}
		return s.print(answer, func() error { return s.policyTable(answer.GetCircuit()).print() })
	})
	return cmd
}

func policyOf(name string) string {
	if name == "" {
		return "the default policy"
	}
	return "the policy of circuit " + name
}

func (s *session) showPolicy(ctx context.Context, name string) error {
	answer, err := ask(ctx, s.remote, s.circuits.GetCircuit, &taskerv1.GetCircuitRequest{Namespace: s.namespace, Circuit: name})
	if err != nil {
		return fmt.Errorf("reading %s: %w", policyOf(name), err)
	}
	return s.print(answer, func() error { return s.policyTable(answer.GetCircuit()).print() })
}

// read puts the file and the flags together. What a flag says, the file may not say too.
func (p *policyChange) read(c *cli) error {
	p.policy, p.fields = &taskerv1.CircuitPolicy{}, nil
	if p.file != "" {
		if err := p.readFile(c); err != nil {
			return err
		}
	}
	for _, text := range p.set {
		name, value, ok := strings.Cut(text, "=")
		if !ok || value == "" {
			return usageError("--set %q: must be FIELD=VALUE", text)
		}
		if err := p.change(name, value); err != nil {
			return usageError("--set %s: %w", text, err)
		}
	}
	for _, name := range p.unset {
		if err := p.change(name, ""); err != nil {
			return usageError("--unset %s: %w", name, err)
		}
	}
	if p.reason != "" && len(p.fields) == 0 {
		return usageError("--reason is for a change, and nothing is changed")
	}
	return nil
}

func (p *policyChange) readFile(c *cli) error {
	body, err := readFile(c, p.file)
	if err != nil {
		return fmt.Errorf("reading the policy: %w", err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(body, &document); err != nil {
		return fmt.Errorf("reading the policy: %s: %w", p.file, err)
	}
	if len(document.Content) == 0 || document.Content[0].Kind != yaml.MappingNode {
		return fmt.Errorf("reading the policy: %s: must be fields and their values", p.file)
	}
	entries := document.Content[0].Content
	for i := 0; i+1 < len(entries); i += 2 {
		key, value := entries[i], entries[i+1]
		text := value.Value
		switch {
		case value.Kind != yaml.ScalarNode:
			err = fmt.Errorf("%s must be one value", key.Value)
		case value.Tag == "!!null":
			err = p.change(key.Value, "")
		case text == "":
			err = fmt.Errorf("%s is empty: null unsets it", key.Value)
		default:
			err = p.change(key.Value, text)
		}
		if err != nil {
			return fmt.Errorf("reading the policy: %s:%d: %w", p.file, key.Line, err)
		}
	}
	return nil
}

// readFile reads a file, or standard input where its name is "-".
func readFile(c *cli, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(c.stdin)
	}
	return os.ReadFile(name)
}

// change sets a field to a value, or unsets it where that is empty. Names are those of the contract, in either of its spellings.
func (p *policyChange) change(name, text string) error {
	field := policyFields().ByName(protoreflect.Name(name))
	if field == nil {
		field = policyFields().ByJSONName(name)
	}
	switch {
	case field == nil:
		return fmt.Errorf("there is no field %q; there are %s", name, strings.Join(policyNames(""), ", "))
	case slices.Contains(p.fields, string(field.Name())):
		return fmt.Errorf("%s is given twice", field.Name())
	}
	p.fields = append(p.fields, string(field.Name()))
	if text == "" {
		return nil
	}
	value, err := parsePolicyValue(field, text)
	if err == nil {
		p.policy.ProtoReflect().Set(field, value)
	}
	return err
}

// parsePolicyValue reads a value of a field. Its bounds are the server's to judge.
func parsePolicyValue(field protoreflect.FieldDescriptor, text string) (protoreflect.Value, error) {
	switch field.Kind() {
	case protoreflect.MessageKind:
		d, err := time.ParseDuration(text)
		if err != nil {
			return protoreflect.Value{}, fmt.Errorf("%s must be a duration such as 90s or 1h30m", field.Name())
		}
		return protoreflect.ValueOfMessage(durationpb.New(d).ProtoReflect()), nil
	case protoreflect.Int32Kind:
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return protoreflect.Value{}, fmt.Errorf("%s must be a whole number", field.Name())
		}
		return protoreflect.ValueOfInt32(int32(n)), nil
	case protoreflect.DoubleKind:
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return protoreflect.Value{}, fmt.Errorf("%s must be a number", field.Name())
		}
		return protoreflect.ValueOfFloat64(x), nil
	case protoreflect.BoolKind:
		is, err := strconv.ParseBool(text)
		if err != nil {
			return protoreflect.Value{}, fmt.Errorf("%s must be true or false", field.Name())
		}
		return protoreflect.ValueOfBool(is), nil
	default:
		return protoreflect.Value{}, fmt.Errorf("%s cannot be set here", field.Name())
	}
}
