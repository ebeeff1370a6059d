"""A back end that has no stubs: backend_without_stubs.py CA ADDRESS TOKEN

It learns the services from the server's reflection, creates a device, reads it back, and tries without a token.
"""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def call(channel, pool, service, method, request, metadata=()):
    descriptor = pool.FindServiceByName(service).methods_by_name[method]
    answer = GetMessageClass(descriptor.output_type)
    invoke = channel.unary_unary(
        f"/{service}/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    message = ParseDict(request, GetMessageClass(descriptor.input_type)())
    return MessageToDict(invoke(message, metadata=metadata, timeout=20))


def main(ca, address, token):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    with grpc.secure_channel(address, credentials) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        for service in sorted(database.get_services()):
            print("service", service)
        pool = DescriptorPool(database)
        authorized = [("authorization", token)]
        devices = "drover.admin.v1.Devices"
        print("created", call(channel, pool, devices, "CreateDevice", {"id": "reflected"}, authorized)["id"])
        print("found", call(channel, pool, devices, "GetDevice", {"id": "reflected"}, authorized)["id"])
        try:
            call(channel, pool, devices, "GetDevice", {"id": "reflected"})
        except grpc.RpcError as error:
            print("without a token:", error.code().name, error.details())


main(*sys.argv[1:])
