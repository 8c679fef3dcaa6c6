package contract_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/contract"
)

const (
	protoRoot  = "../../proto"
	clientRoot = "../../gen/proto"
)

// compile reads a .proto file with its comments, as a client's compiler would: with the files under root and the
// compiler's own well-known types, and nothing else.
func compile(t *testing.T, root, name string) protoreflect.FileDescriptor {
	t.Helper()
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{root}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := compiler.Compile(t.Context(), name)
	if err != nil {
		t.Fatalf("compiling %s under %s: %v", name, root, err)
	}
	return compiled[0]
}

func TestEveryErrorReasonShowsAnExample(t *testing.T) {
	file := compile(t, clientRoot, "tasker/v1/errors.proto")
	reasons := file.Enums().ByName("ErrorReason").Values()
	opening := regexp.MustCompile(`^ (No reason is known|INVALID_ARGUMENT|NOT_FOUND|ALREADY_EXISTS|FAILED_PRECONDITION|ABORTED|` +
		`RESOURCE_EXHAUSTED|UNAVAILABLE|UNAUTHENTICATED|PERMISSION_DENIED|INTERNAL)[:., ]`)
	for i := range reasons.Len() {
		value := reasons.Get(i)
		t.Run(string(value.Name()), func(t *testing.T) {
			comment := file.SourceLocations().ByDescriptor(value).LeadingComments
			if !opening.MatchString(comment) {
				t.Errorf("the comment does not begin with the status code: %q", comment)
			}
			_, example, found := strings.Cut(comment, "Example: ")
			if !found {
				t.Fatal("no example")
			}
			var info struct {
				Domain   string            `json:"domain"`
				Reason   string            `json:"reason"`
				Metadata map[string]string `json:"metadata"`
			}
			reader := json.NewDecoder(strings.NewReader(example))
			reader.DisallowUnknownFields()
			if err := reader.Decode(&info); err != nil {
				t.Fatalf("reading the example: %v", err)
			}
			if info.Domain != "tasker" || "ERROR_REASON_"+info.Reason != string(value.Name()) || info.Metadata == nil {
				t.Errorf("the example is not one of this reason: %+v", info)
			}
		})
	}
}

// Clients get the contract whole: the copies differ from the originals in the rules alone, and are up to date.
func TestClientCopiesAreTheContractWithoutItsRules(t *testing.T) {
	for _, file := range files {
		name := file.Path()
		t.Run(name, func(t *testing.T) {
			source, err := os.ReadFile(filepath.Join(protoRoot, name))
			if err != nil {
				t.Fatal(err)
			}
			committed, err := os.ReadFile(filepath.Join(clientRoot, name))
			if err != nil {
				t.Fatal(err)
			}
			stripped, err := contract.Strip(name, source)
			if err != nil {
				t.Fatal(err)
			}
			if string(stripped) != string(committed) {
				t.Errorf("gen/proto/%s is out of date: run buf generate", name)
			}
			copied := compile(t, clientRoot, name)
			for i := range copied.Imports().Len() {
				imported := copied.Imports().Get(i).Path()
				if !strings.HasPrefix(imported, "google/protobuf/") && !strings.HasPrefix(imported, "tasker/v1/") {
					t.Errorf("imports %s", imported)
				}
			}
			want := withoutRules(protodesc.ToFileDescriptorProto(file))
			got := protodesc.ToFileDescriptorProto(copied)
			got.SourceCodeInfo = nil
			if !proto.Equal(want, got) {
				t.Errorf("differs from the original in more than its rules:\n got %v\nwant %v", got, want)
			}
		})
	}
}

// withoutRules takes the rules out of a descriptor, as Strip takes them out of the source.
func withoutRules(file *descriptorpb.FileDescriptorProto) *descriptorpb.FileDescriptorProto {
	kept := file.GetDependency()[:0]
	for _, d := range file.GetDependency() {
		if d != "buf/validate/validate.proto" {
			kept = append(kept, d)
		}
	}
	file.Dependency = kept
	for _, m := range file.GetMessageType() {
		stripMessage(m)
	}
	return file
}

func stripMessage(m *descriptorpb.DescriptorProto) {
	m.Options = without(m.GetOptions(), validate.E_Message)
	for _, f := range m.GetField() {
		f.Options = without(f.GetOptions(), validate.E_Field)
	}
	for _, o := range m.GetOneofDecl() {
		o.Options = without(o.GetOptions(), validate.E_Oneof)
	}
	for _, n := range m.GetNestedType() {
		stripMessage(n)
	}
}

// clear gives options without the rule; nil when nothing else is left, as for a field that never had any.
func without[M interface {
	comparable
	proto.Message
}](options M, rule protoreflect.ExtensionType) M {
	var none M
	if options == none {
		return none
	}
	proto.ClearExtension(options, rule)
	if proto.Size(options) == 0 {
		return none
	}
	return options
}

func TestStripKeepsWhatIsNotARule(t *testing.T) {
	const source = `syntax = "proto3";
package p;
import "buf/validate/validate.proto";

// M has "[(buf.validate.field) = 1]" in its comment.
message M {
  // A is old.
  string a = 1 [deprecated = true, (buf.validate.field).string = {
    max_bytes: 3
    pattern: "]"
  }];
  string b = 2 [(buf.validate.field).cel = {id: "x"}, (buf.validate.field).required = true]; // behind
  string c = 3 [json_name = "C"];

  option (buf.validate.message).cel = {id: "y"};
}
`
	const want = `// Code generated by protoc-gen-clientproto from proto/m.proto, without its validation rules. DO NOT EDIT.

syntax = "proto3";
package p;

// M has "[(buf.validate.field) = 1]" in its comment.
message M {
  // A is old.
  string a = 1 [deprecated = true];
  string b = 2; // behind
  string c = 3 [json_name = "C"];
}
`
	got, err := contract.Strip("m.proto", []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if _, err := contract.Strip("m.proto", []byte("message {")); err == nil {
		t.Error("a file that is not protobuf was taken")
	}
}

// Each generator names packages by its language's own option; a file that lacks one would land in another package than
// the rest.
func TestEveryFileNamesItsPackageInEveryLanguage(t *testing.T) {
	for _, file := range files {
		o := protodesc.ToFileDescriptorProto(file).GetOptions()
		if o.GetGoPackage() != "github.com/taskerhq/tasker/gen/go/tasker/v1;taskerv1" || o.GetJavaPackage() != "com.taskerhq.tasker.v1" ||
			!o.GetJavaMultipleFiles() || o.GetCsharpNamespace() != "Tasker.V1" || o.GetPhpNamespace() != `Tasker\V1` ||
			o.GetRubyPackage() != "Tasker::V1" {
			t.Errorf("%s: %v", file.Path(), o)
		}
		if file.Syntax() != protoreflect.Proto3 {
			t.Errorf("%s is not proto3", file.Path())
		}
	}
}

// The names of these two are fixed: they are what Tasker is.
func TestFixedNames(t *testing.T) {
	worker := pb.File_tasker_v1_worker_service_proto.Services().ByName("WorkerService")
	ready := worker.Methods().ByName("ReadySteps")
	if ready == nil || !ready.IsStreamingServer() || ready.IsStreamingClient() {
		t.Errorf("ReadySteps is not a server stream: %v", ready)
	}
	result := worker.Methods().ByName("ReportStepResult")
	if result == nil || result.IsStreamingServer() || result.IsStreamingClient() {
		t.Errorf("ReportStepResult is not unary: %v", result)
	}
}
